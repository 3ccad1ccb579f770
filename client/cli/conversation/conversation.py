"""`talk` runs a conversation with a model that has a memory; `Chat` answers each line."""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

from treadle.client.cli.conversation.chat_terminal import converse
from treadle.client.cli.display.console import Console
from treadle.client.cli.display.notices import print_break
from treadle.client.cli.display.output_file import write_output
from treadle.client.cli.options.values import read_state
from treadle.client.errors import CancelledError, InputError, ServerError, UnavailableError
from treadle.client.files.paths import display_path

if TYPE_CHECKING:
    from treadle.client.client import Client
    from treadle.client.options import GenerateOptions
    from treadle.client.session import Session
    from treadle.v1.sequence_pb2 import Model

MAX_UNDONE = 1000
"""Exchanges that `/undo` can take back: a conversation through a pipe may have any length."""

HELP = """\
/save FILE   keep the state of the conversation in a file
/load FILE   continue from a saved state
/undo        take back the last exchange, /load or /reset
/reset       begin again
/help        this list
/quit        leave; so do Ctrl-D, and Ctrl-C where you type
Ctrl-C during a reply ends it, as if its line had not been typed.
A line that begins with // is sent with one / less."""


def talk(
    client: Client,
    model: Model,
    options: GenerateOptions,
    console: Console,
    lines: Iterable[str] | None,
) -> int:
    """Runs a conversation with a model.

    Args:
        client: The client.
        model: The model.
        options: How it replies.
        console: The output of the replies.
        lines: The lines to answer; None asks for them on the terminal.

    Returns:
        The exit code.
    """
    from treadle.v1.sequence_pb2 import CORPUS_LAYOUT_LINES

    session = client.session(model.name, on_break=print_break, **options)
    chat = Chat(session, model.layout == CORPUS_LAYOUT_LINES, console)
    if lines is None:
        return converse(chat.take, session.stop)
    for line in lines:
        if not chat.take(line):
            break
    return 0


class Chat:
    """A conversation: each line is answered, or run as a command if it begins with a slash.

    Args:
        session: The session with the memory.
        items: Whether the model's corpus has one item per line: the end of an item ends the memory.
        console: The output of the replies.
    """

    def __init__(self, session: Session, items: bool, console: Console) -> None:
        self._session = session
        self._items = items
        self._console = console
        self._before: deque[bytes] = deque(maxlen=MAX_UNDONE)
        """The states before each exchange, for `/undo`."""
        self._commands = {
            "save": self._save,
            "load": self._load,
            "undo": self._undo,
            "reset": self._reset,
            "help": self._help,
        }

    def take(self, line: str) -> bool:
        """Answers a line or runs its command.

        Returns:
            False where the line ends the conversation.

        Raises:
            UnavailableError: The server is gone; other errors are printed, and the conversation
                continues.
        """
        if line.startswith("//"):
            line = line[1:]
        elif line.startswith("/"):
            return self._run_command(*line[1:].strip().partition(" ")[::2])
        before = self._session.state
        try:
            self._answer(line)
            self._before.append(before)
        except UnavailableError:
            raise
        except CancelledError:
            self._session.state = before
            self._say("(ended; the memory is as it was before this line)")
        except (InputError, ServerError) as error:
            self._session.state = before
            self._say(error.in_names_of(self._console.argument_names()))
        return True

    def _answer(self, line: str) -> None:
        """Prints the reply to a line as it is generated."""
        begun = False
        try:
            for piece in self._session.stream(line if self._items else line + "\n"):
                self._console.text(piece)
                begun = True
        except ServerError:
            if begun:
                self._console.text("\n")
            raise
        self._console.text("\n")
        self._after_reply()

    def _after_reply(self) -> None:
        """Reads the text that ended the reply, since the memory lacks it."""
        from treadle.v1.sequence_pb2 import STOP_REASON_END_TOKEN

        result = self._session.result
        if result is None:
            return
        if self._items and result.stop_reason == STOP_REASON_END_TOKEN:
            self._session.state = b""  # the next item begins without a memory
        elif between := result.stop_sequence or ("" if self._items else "\n"):
            self._session.read(between)

    def _run_command(self, command: str, word: str) -> bool:
        """Runs the command of a line that begins with a slash."""
        if command == "quit":
            return False
        do = self._commands.get(command)
        if do is None:
            self._say(f"there is no /{command}: /help lists what there is")
            return True
        try:
            do(word.strip())
        except (InputError, argparse.ArgumentTypeError) as error:
            self._say(str(error))
        return True

    def _save(self, path: str) -> None:
        """Writes the state to a file."""
        if not path:
            raise InputError("name a file: /save FILE")
        if not self._session.state:
            why = (
                "nothing was typed since the last item"
                if self._items and self._before
                else "nothing was typed yet"
            )
            raise InputError(f"{why}: there is no state to save")
        write_output(path, self._session.state)
        self._say(f"{len(self._session.state):,} bytes in {display_path(path)}")

    def _load(self, path: str) -> None:
        """Continues from a saved state."""
        if not path:
            raise InputError("name a file: /load FILE")
        state = read_state(path)
        self._before.append(self._session.state)
        self._session.state = state

    def _undo(self, _: str) -> None:
        """Takes back the last exchange."""
        if not self._before:
            raise InputError("there is nothing to take back")
        self._session.state = self._before.pop()

    def _reset(self, _: str) -> None:
        """Begins again."""
        self._before.append(self._session.state)
        self._session.state = b""

    def _help(self, _: str) -> None:
        """Lists the commands."""
        self._say(HELP)

    def _say(self, text: str) -> None:
        """Writes a message to standard error, apart from the replies."""
        print(text, file=sys.stderr, flush=True)
