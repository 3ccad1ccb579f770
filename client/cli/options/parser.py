"""`Parser` is the argument parser of the `treadle` command."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, TypeAlias

from treadle.client.access.bearer_token import without_secrets
from treadle.client.cli.display.console import printable

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""The return type of `add_subparsers`."""


class Parser(argparse.ArgumentParser):
    """A parser that takes no abbreviations and reports an error in one sentence."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parses, and finds an optional MODEL and FILE, and TEXTs, behind options as well.

        Python 3.11's argparse looks for them only before the first option, or right behind the
        words before them (python/cpython#59317).

        Returns:
            The parsed arguments, and those that are unknown.
        """
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
        if rest:
            parsed.parser.error(f"unrecognized arguments: {' '.join(rest)}")
        return parsed

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
