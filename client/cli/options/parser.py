"""`Parser` is the argument parser of the `treadle` command."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections import UserDict
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, cast

from treadle.client.access.bearer_token import without_secrets
from treadle.client.cli.display.console import printable
from treadle.client.cli.options.suggestion import suggestion

Fill: TypeAlias = "Callable[[Parser], None]"
"""Adds the arguments of a parser."""


class Parsers(UserDict[str, "Parser"]):
    """The parsers of commands by name; each is made, with its arguments, when it is looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.importing: dict[str, Callable[[], None]] = {}
        """How to add the parsers of commands whose module is not imported yet."""

    def __contains__(self, name: object) -> bool:
        """Returns whether there is such a command, imported or not."""
        return name in self.data or name in self.importing

    def __len__(self) -> int:
        """Returns the number of commands."""
        return len(self.importing.keys() | self.data.keys())

    def __iter__(self) -> Iterator[str]:
        """Yields the names of the commands, in the order of the help."""
        return iter({**self.importing, **self.data})

    def __getitem__(self, name: str) -> Parser:
        """Returns a parser with its arguments."""
        if name not in self.data and name in self.importing:
            self.importing[name]()
        parser = super().__getitem__(name)
        parser.fill()
        return parser


if TYPE_CHECKING:
    SubParsersAction = argparse._SubParsersAction["Parser"]
else:
    SubParsersAction = argparse._SubParsersAction


class Commands(SubParsersAction):
    """The commands of a parser, as `add_subparsers` makes them.

    The arguments of a command are added only when the command is named: those that come from the
    contract load protobuf, and the others take time as well.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.parsers = Parsers()
        self._name_parser_map = self.parsers  # type: ignore[assignment]
        self.choices = self.parsers  # type: ignore[assignment]

    def add_module(self, name: str, module: str, text: str) -> None:
        """Adds a command of a module that is imported when the command is named.

        Args:
            name: The name.
            module: The module, whose `add_parsers` adds the command.
            text: What the command does, for the list of commands.
        """
        self.parsers.importing[name] = lambda: import_module(module).add_parsers(self)
        self._choices_actions.append(self._ChoicesPseudoAction(name, (), text))

    def add_parser(self, name: str, *, fill: Fill | None = None, **settings: Any) -> Parser:
        """Adds a command.

        Args:
            name: The name.
            fill: Adds its arguments, when they are needed.
            **settings: The help, the description and others of `ArgumentParser`.

        Returns:
            The command's parser.
        """
        if name in self.parsers.importing:
            parser = self._parser_class(prog=f"{self._prog_prefix} {name}", **settings)
            self.parsers.data[name] = parser
        else:
            parser = super().add_parser(name, **settings)
        parser.on_fill = fill
        return parser


class Parser(argparse.ArgumentParser):
    """A parser that takes no abbreviations and reports an error in one sentence."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False)
        self.on_fill: Fill | None = None
        """Adds the arguments, once."""
        self.takes_every_word = False
        """Whether all that follows the command is `words`, as another program will read them."""
        self._words: list[str] = []
        """The words that are parsed."""

    def add_subparsers(self, **settings: Any) -> Commands:  # type: ignore[override]
        """Adds commands, or the actions of a command."""
        return cast(Commands, super().add_subparsers(action=Commands, **settings))

    def fill(self) -> None:
        """Adds the arguments that were left out until the command is named."""
        fill = self.on_fill
        self.on_fill = None
        if fill is not None:
            fill(self)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parses, and finds an optional MODEL and FILE, and TEXTs, behind options as well.

        Python 3.11's argparse looks for them only before the first option, or right behind the
        words before them (python/cpython#59317).

        Returns:
            The parsed arguments, and those that are unknown.
        """
        self._words = list(sys.argv[1:] if args is None else args)
        if self.takes_every_word:
            parsed, _ = super().parse_known_args([], namespace)
            parsed.words = self._words
            return parsed, []
        parsed, rest = super().parse_known_args(args, namespace)
        if "parser" not in parsed:  # the parser of the command, or of its action, sets it first
            parsed.parser = self
        open_ = [name for name in ("model", "file") if getattr(parsed, name, "") is None]
        words = all(word == "-" or not word.startswith("-") for word in rest)
        if words and (len(rest) <= len(open_) or "texts" in parsed):
            for name in open_[: len(rest)]:
                setattr(parsed, name, rest.pop(0))
        if words and "texts" in parsed:
            parsed.texts += rest
            rest = []
        return parsed, rest

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> argparse.Namespace:
        """Parses; an unknown argument is an error of the command that it follows."""
        self._refuse_token(sys.argv[1:] if args is None else args)
        parsed, rest = self.parse_known_args(args, namespace)
        parsed.whole_parser = self
        if rest:
            hint = parsed.parser.flag_suggestion(rest)
            parsed.parser.error(f"unrecognized arguments: {' '.join(rest)}{hint}")
        return parsed

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Checks a word of a few; an unknown command is one as well."""
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError:
            near = suggestion(str(value), map(str, action.choices or ()))
            if not near:
                raise
            raise argparse.ArgumentError(action, f"invalid choice: {value!r}{near}") from None

    def flag_suggestion(self, words: Sequence[str]) -> str:
        """Returns the flag that the first unknown one may stand for, as the end of a sentence."""
        for word in itertools.takewhile(lambda word: word != "--", words):
            flag = word.partition("=")[0]
            if flag.startswith("--") and flag not in self._option_string_actions:
                return suggestion(flag, self._option_string_actions, quote="")
        return ""

    def _refuse_token(self, args: Sequence[str]) -> None:
        """Refuses a token on the command line, before any message can show it."""
        options = itertools.takewhile(lambda word: word != "--", args)
        if any(word == "--token" or word.startswith("--token=") for word in options):
            self.error(
                "there is no --token: every user of this machine can see the words of a command; "
                "give --token-file FILE, set TREADLE_TOKEN, or run `treadle config set token`"
            )

    def error(self, message: str) -> NoReturn:
        """Exits with 2, as argparse does, but without the usage's many lines."""
        if message.startswith("the following arguments are required"):
            message += self.flag_suggestion(self._words)
        shown = printable(without_secrets(message))
        self.exit(2, f"treadle: {shown} (see `{self.prog} --help`)\n")


class Version(argparse.Action):
    """Prints the version; it is looked up only when asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:  # noqa: A002
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Prints it and exits."""
        from importlib.metadata import version

        print(f"treadle {version('treadle')}")
        parser.exit()
