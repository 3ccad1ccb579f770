"""The command `treadle help` shows a topic, a command, or the manual page."""

from __future__ import annotations

import argparse

from treadle.client.cli.display.console import Console
from treadle.client.cli.options.parser import Commands
from treadle.client.cli.options.suggestion import suggestion
from treadle.client.cli.shell.topics import ORDER, topics
from treadle.client.errors import InputError


def add_parsers(commands: Commands) -> None:
    """Adds `treadle help`."""
    parser = commands.add_parser(
        "help",
        description="Explain a topic or a command. Without a word, list the topics.",
    )
    parser.add_argument(
        "topic",
        metavar="TOPIC",
        nargs="*",
        help=f"one of {', '.join(ORDER)}; or a command, such as `train` or `models show`",
    )
    parser.add_argument(
        "--man",
        action="store_true",
        help="print a manual page of every command and topic, for man",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> None:
    """Shows the topic.

    Raises:
        InputError: There is no such topic or command.
    """
    if args.man:
        from treadle.client.cli.shell.manual_page import manual_page

        console.line(manual_page(args.whole_parser, topics()))
        return
    if not args.topic:
        _list(console)
        return
    word = " ".join(args.topic)
    found = {topic.name: topic for topic in topics()}
    if word in found:
        if console.has_rich:
            from treadle.client.cli.display.terminal.markdown_text import print_markdown

            print_markdown(found[word].text, console)
        else:
            console.line(found[word].plain())
        return
    command = _command(args.whole_parser, args.topic)
    if command is None:
        names = [*found, *_commands(args.whole_parser)]
        near = suggestion(word, names) or ": `treadle help` lists the topics"
        raise InputError(f"there is no topic or command {word!r}{near}")
    console.line(command.format_help().rstrip())


def _list(console: Console) -> None:
    """Lists the topics with their titles."""
    console.line("treadle help TOPIC explains a topic, treadle help COMMAND a command.")
    console.line()
    for topic in topics():
        console.line(f"  {topic.name:<16}{topic.title}")


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Returns the commands of a parser by name; most commands have none of their own."""
    for action in parser._actions:
        if isinstance(action, Commands):
            return dict(action.choices or {})
    return {}


def _command(parser: argparse.ArgumentParser, words: list[str]) -> argparse.ArgumentParser | None:
    """Returns the parser of a command, or of its action; None: there is no such command."""
    for word in words:
        commands = _commands(parser)
        if word not in commands:
            return None
        parser = commands[word]
    return parser
