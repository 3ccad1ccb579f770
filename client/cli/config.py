"""The command `treadle config` shows and changes the profiles of the configuration file."""

from __future__ import annotations

import argparse
import getpass
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from treadle.client.cli.connect import read_settings
from treadle.client.cli.display.console import Console
from treadle.client.cli.display.tables import print_facts
from treadle.client.cli.options.parser import Commands
from treadle.client.cli.options.shared import add_connection, add_json, add_profile
from treadle.client.errors import InputError

if TYPE_CHECKING:
    from treadle.client.settings.connection_settings import ConnectionSettings

FILE_KEY = "default_profile"
"""The key that belongs to the file as a whole."""

MAX_INPUT_CHARACTERS = 1 << 16
"""The most that is read of standard input."""

DESCRIPTION = """\
Profiles of connections, in ~/.config/treadle/config.toml (or below $XDG_CONFIG_HOME):

    treadle config set --profile prod server treadle.example.com:443
    treadle config set --profile prod ca_file company-ca.pem
    treadle config set --profile prod token            # asks for it
    treadle config set default_profile prod

A flag takes precedence over an environment variable, and that over the profile. The token of a
profile is sent to the server of that profile only.
"""

KEYS = (
    "server, tls, ca_file, cert_file, key_file, token, token_file, allow_plaintext_token, or "
    "default_profile, which belongs to the whole file"
)


def add_parsers(commands: Commands) -> None:
    """Adds `treadle config` and its actions."""
    parser = commands.add_parser(
        "config",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run_show)
    actions = parser.add_subparsers(title="actions", dest="action")
    show = actions.add_parser(
        "show",
        help="show the settings that apply, and where each comes from (default)",
        description="Show the settings that apply and where each comes from; tokens are masked.",
    )
    for each in (parser, show):
        add_json(each)
        add_connection(each)
    show.set_defaults(run=run_show)
    path = actions.add_parser(
        "path", help="print the name of the file", description="Print the name of the file."
    )
    path.set_defaults(run=run_path)
    set_ = actions.add_parser(
        "set",
        help="set a key of a profile",
        description="Set a key of a profile; both are created where they do not exist. A token is "
        "read from standard input, or asked for on a terminal: the words of a command can be seen "
        "by others.",
    )
    set_.add_argument("key", metavar="KEY", help=KEYS)
    set_.add_argument("value", metavar="VALUE", nargs="?", help="the value; none for a token")
    set_.set_defaults(run=run_set)
    unset = actions.add_parser(
        "unset",
        help="remove a key of a profile",
        description="Remove a key of a profile, and the profile with its last key.",
    )
    unset.add_argument("key", metavar="KEY", help=KEYS)
    unset.set_defaults(run=run_unset)
    for each in (path, set_, unset):
        add_profile(each)


def run_show(args: argparse.Namespace, console: Console) -> None:
    """Shows the settings that apply."""
    from treadle.client.access.bearer_token import masked

    settings = read_settings(args)
    shown = {
        name: (masked(str(value.value)) if name == "token" else value.value, value.source)
        for name, value in settings.values.items()
    }
    if getattr(args, "json", False):
        import json

        console.line(
            json.dumps(
                {
                    "path": str(settings.config.path or ""),
                    "profiles": sorted(settings.config.profiles),
                    "profile": settings.profile,
                    "settings": {
                        name: {"value": value, "source": source}
                        for name, (value, source) in shown.items()
                    },
                },
                ensure_ascii=False,
            )
        )
        return
    print_facts(_file_facts(settings), console)
    rows = [
        [name, str(value).lower() if isinstance(value, bool) else value, source]
        for name, (value, source) in shown.items()
    ]
    if "server" not in shown:
        from treadle.client.connection import DEFAULT_ADDRESS

        rows.insert(0, ["server", DEFAULT_ADDRESS, "default"])
    console.line()
    console.table(["setting", "value", "from"], rows, left=3, cut=1)


def _file_facts(settings: ConnectionSettings) -> list[tuple[str, str]]:
    """Returns what is known of the file and the profile."""
    config = settings.config
    path = str(config.path or "none: there is no home directory")
    facts = [("file", path if config.exists else f"{path} (does not exist)")]
    if config.profiles:
        facts.append(("profiles", ", ".join(sorted(config.profiles))))
    if settings.profile:
        facts.append(("profile", f"{settings.profile} ({settings.profile_source})"))
    elif settings.unused_profile:
        server = settings.values["server"]
        facts.append(
            (
                "profile",
                f"none: {settings.unused_profile} is for another server than {server.source}",
            )
        )
    return facts


def run_path(args: argparse.Namespace, console: Console) -> None:
    """Prints the name of the file."""
    console.line(str(_path()))


def run_set(args: argparse.Namespace, console: Console) -> None:
    """Sets a key."""
    from treadle.client.access.bearer_token import check_token, masked
    from treadle.client.address import check_address
    from treadle.client.settings.config_editor import (
        check_profile_name,
        import_tomlkit,
        set_value,
    )
    from treadle.client.settings.setting import SETTINGS

    path = _path()
    key = _key(args.key)
    profile = _profile(args, key)
    if key not in (FILE_KEY, *SETTINGS):
        raise InputError(f"there is no key {args.key!r}: give {KEYS}")
    if key == "token" and args.value is not None:
        raise InputError(
            "a token in a command can be seen by others and stays in the shell's history: run "
            "`treadle config set token` without it, which asks for it or reads standard input"
        )
    if key != "token" and args.value is None:
        raise InputError(f"give the value of {key}")
    if args.value == "":
        raise InputError(f"the value of {key} is empty: `treadle config unset {key}` removes it")
    import_tomlkit()  # before a token is typed
    value: str | bool
    if key == FILE_KEY:
        check_profile_name(args.value)
        value = args.value
    elif key == "token":
        check_profile_name(profile)
        value = check_token(_read_token())
    else:
        check_profile_name(profile)
        value = SETTINGS[key].read(args.value, key)
        if key == "server":
            check_address(args.value)
        if SETTINGS[key].is_path and isinstance(value, str) and not value.startswith("~"):
            value = os.path.abspath(value)
    set_value(path, profile, key, value)
    shown = masked(str(value)) if key == "token" else str(value)
    shown = shown.lower() if isinstance(value, bool) else shown
    console.line(f"{key} = {shown}" + (f" (profile {profile})" if profile else ""))


def run_unset(args: argparse.Namespace, console: Console) -> None:
    """Removes a key."""
    from treadle.client.settings.config_editor import unset_value

    path = _path()
    key = _key(args.key)
    profile = _profile(args, key)
    if not unset_value(path, profile, key):
        where = f"profile {profile!r}" if profile else "file"
        raise InputError(f"the {where} has no key {key!r}")


def _path() -> Path:
    """Returns the name of the file.

    Raises:
        InputError: There is no home directory.
    """
    from treadle.client.settings.config_file import config_path

    path = config_path(os.environ)
    if path is None:
        raise InputError("there is no home directory for the file: set HOME or XDG_CONFIG_HOME")
    return path


def _key(text: str) -> str:
    """Returns a key as the file has it."""
    return text.removeprefix("--").replace("-", "_")


def _profile(args: argparse.Namespace, key: str) -> str:
    """Returns the profile that a change is for; empty for the file as a whole."""
    from treadle.client.settings.config_file import DEFAULT_PROFILE, read_default_profile
    from treadle.client.settings.setting import PROFILE_VARIABLE

    if key == FILE_KEY:
        return ""
    named = str(getattr(args, "profile", "")) or os.environ.get(PROFILE_VARIABLE, "")
    return named or read_default_profile(_path()) or DEFAULT_PROFILE


def _read_token() -> str:
    """Reads a token from standard input, or asks for it on a terminal without showing it."""
    if sys.stdin is None or not sys.stdin.isatty():
        return "" if sys.stdin is None else sys.stdin.read(MAX_INPUT_CHARACTERS)
    # The handler of the command would end the process with the terminal's echo turned off.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return getpass.getpass("token: ")
    except (KeyboardInterrupt, EOFError) as end:
        is_interrupt = isinstance(end, KeyboardInterrupt)
    finally:
        signal.signal(signal.SIGINT, before)
    if is_interrupt:
        signal.raise_signal(signal.SIGINT)
    raise InputError("no token was given")
