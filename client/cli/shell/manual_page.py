"""`manual_page` writes treadle(1) from the parser and the topics, in the macros of man(7)."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from importlib.metadata import version

from treadle.client.cli.options.parser import Commands
from treadle.client.cli.shell.topics import Topic

ESCAPES = {"\\": "\\e", "-": "\\-", "'": "\\(aq", "`": "\\(ga"}
"""How characters are written that stand for something else."""


def manual_page(parser: argparse.ArgumentParser, topics: Sequence[Topic]) -> str:
    """Returns the page.

    Args:
        parser: The parser of the whole command line.
        topics: The topics, each of which becomes a section.
    """
    lines = [
        f'.TH TREADLE 1 "" "treadle {version("treadle")}" "User Commands"',
        ".SH NAME",
        f"treadle \\- {_text(str(parser.description)).rstrip('.').lower()}",
        ".SH SYNOPSIS",
        ".B treadle",
        "[\\fIconnection\\fR] \\fIcommand\\fR [\\fIoptions\\fR]",
        ".SH CONNECTION",
        *_options(parser),
        ".SH COMMANDS",
    ]
    for name, command in _commands(parser):
        lines += _section(name, command)
    for topic in topics:
        lines += [f'.SH "{_text(topic.title.upper())}"', *_body(topic.plain())]
    return "\n".join(lines)


def _commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yields the commands with their actions, by their whole names."""
    for action in parser._actions:
        if isinstance(action, Commands):
            for command in dict(action.choices or {}).values():
                yield command.prog.removeprefix("treadle "), command
                yield from _commands(command)


def _section(name: str, command: argparse.ArgumentParser) -> list[str]:
    """Describes one command."""
    positional = [
        str(action.metavar or action.dest)
        for action in command._get_positional_actions()
        if not isinstance(action, Commands)
    ]
    lines = [f'.SS "treadle {_text(" ".join([name, *positional]))}"']
    if command.description:
        lines += _body(command.description)
    return lines + list(_options(command, without="connection"))


def _options(parser: argparse.ArgumentParser, without: str = "") -> Iterator[str]:
    """Describes the options of a parser, but for those of one group."""
    for group in parser._action_groups:
        if group.title == without:
            continue
        for action in group._group_actions:
            if isinstance(action, Commands) or action.help in (None, argparse.SUPPRESS):
                continue
            names = action.option_strings or [str(action.metavar or action.dest)]
            value = _value(action) if action.option_strings else ""
            shown = ", ".join(f"\\fB{_text(name)}\\fR" for name in names)
            yield ".TP"
            yield shown + (f" \\fI{_text(value)}\\fR" if value else "")
            yield _text(str(action.help).replace("%%", "%"))


def _value(action: argparse.Action) -> str:
    """Returns how the value of an option is written."""
    if action.nargs == 0:
        return ""
    if action.choices is not None:
        return "|".join(map(str, action.choices))
    return str(action.metavar or action.dest.upper())


def _body(text: str) -> list[str]:
    """Returns paragraphs; indented lines and lists stay as they are."""
    lines = []
    for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
        if re.search(r"^(    |- |\S+ {3})", paragraph, re.MULTILINE):
            lines += [".PP", ".nf", *map(_text, paragraph.splitlines()), ".fi"]
        else:
            lines += [".PP", *map(_text, paragraph.splitlines())]
    return lines


def _text(text: str) -> str:
    """Escapes a line, which then begins no macro."""
    escaped = "".join(ESCAPES.get(character, character) for character in text)
    return f"\\&{escaped}" if escaped.startswith((".", "\\(aq")) else escaped
