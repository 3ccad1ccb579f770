"""Where the settings of a connection come from: arguments, variables and profiles."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from treadle.client import Client, InputError
from treadle.client.settings.config_editor import set_value, unset_value
from treadle.client.settings.config_file import line_of, read_config
from treadle.client.settings.connection_settings import resolve_settings
from treadle.client.settings.setting import SETTINGS

SECRET = "treadle_ab12_5ecret5ecret"

PROFILES = """\
default_profile = "test"

[profiles.test]
server = "test.example.com:443"

[profiles.prod]  # the one that counts
server = "prod.example.com:443"
tls = true
ca_file = "ca.pem"
token = "treadle_ab12_5ecret5ecret"
"""


class Home:
    """A folder of configuration files, and the environment that names it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "treadle" / "config.toml"
        self.path.parent.mkdir()
        self.environment = {"XDG_CONFIG_HOME": str(folder), "HOME": str(folder)}

    def write(self, text: str, mode: int = 0o600) -> None:
        self.path.write_text(text, encoding="utf-8")
        self.path.chmod(mode)

    def values(
        self, flags: dict[str, Any] | None = None, profile: str = "", **variables: str
    ) -> dict[str, Any]:
        settings = resolve_settings(flags or {}, self.environment | variables, profile)
        return {name: value.value for name, value in settings.values.items()}

    def fault(self, text: str) -> str:
        self.write(text)
        with pytest.raises(InputError) as caught:
            read_config(self.path)
        assert SECRET not in str(caught.value)
        return str(caught.value).replace(str(self.path), "FILE")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


class TestPrecedence:
    @pytest.mark.parametrize("name", SETTINGS)
    def test_a_flag_before_a_variable_before_a_profile(self, home: Home, name: str) -> None:
        is_switch = SETTINGS[name].kind is bool
        value = "false" if is_switch else '"/profile:1"'
        home.write(f"[profiles.p]\n{name} = {value}\n")
        variable = {SETTINGS[name].variable: "yes" if is_switch else "/variable:1"}
        if name == "server":
            home.write('[profiles.p]\nserver = "profile:1"\n')
            variable = {"TREADLE_SERVER": "variable:1"}
        slash = "" if name == "server" else "/"
        in_profile = False if is_switch else f"{slash}profile:1"
        in_variable = True if is_switch else f"{slash}variable:1"
        assert home.values() == {}
        assert home.values(profile="p")[name] == in_profile
        assert home.values({}, "p", **variable)[name] == in_variable
        flag = False if is_switch else "flag"
        assert home.values({name: flag}, "p", **variable)[name] == flag

    def test_a_profile_is_named_by_an_argument_a_variable_or_the_file(self, home: Home) -> None:
        home.write(PROFILES)
        servers = [
            home.values()["server"],
            home.values(TREADLE_PROFILE="prod")["server"],
            home.values(profile="test", TREADLE_PROFILE="prod")["server"],
        ]
        assert servers == ["test.example.com:443", "prod.example.com:443", "test.example.com:443"]
        home.write('[profiles.default]\nserver = "default:1"\n')
        assert home.values() == {"server": "default:1"}

    def test_files_of_a_profile_are_next_to_its_file(self, home: Home) -> None:
        home.write('[profiles.default]\nca_file = "ca.pem"\nkey_file = "~/key.pem"\n')
        expected = {
            "ca_file": str(home.path.parent / "ca.pem"),
            "key_file": os.path.expanduser("~/key.pem"),
        }
        assert home.values() == expected

    def test_an_empty_variable_is_not_set(self, home: Home) -> None:
        home.write(PROFILES)
        assert home.values(profile="prod", TREADLE_TOKEN="", TREADLE_TLS="")["token"] == SECRET

    def test_a_token_replaces_the_file_of_one(self, home: Home) -> None:
        home.write('[profiles.default]\ntoken_file = "t"\n')
        assert home.values(TREADLE_TOKEN=SECRET) == {"token": SECRET}
        assert home.values({"token_file": "f"}, TREADLE_TOKEN=SECRET) == {"token_file": "f"}
        with pytest.raises(InputError, match="either TREADLE_TOKEN or TREADLE_TOKEN_FILE"):
            home.values(TREADLE_TOKEN=SECRET, TREADLE_TOKEN_FILE="f")

    def test_tls_and_its_files_replace_each_other(self, home: Home) -> None:
        home.write(PROFILES)
        values = home.values({"tls": False}, profile="prod", TREADLE_KEY_FILE="k")
        assert "ca_file" not in values
        assert "key_file" not in values
        home.write("[profiles.default]\ntls = false\n")
        assert home.values({"ca_file": "c"}) == {"ca_file": "c"}

    @pytest.mark.parametrize("name", ["token_file", "key_file"])
    def test_it_warns_of_secrets_that_every_user_may_read(self, home: Home, name: str) -> None:
        secret = home.path.parent / "secret"
        secret.write_text(SECRET)
        for mode, is_open in ((0o600, False), (0o640, False), (0o644, True)):
            secret.chmod(mode)
            settings = resolve_settings({name: str(secret)}, home.environment)
            said = f"every user of this machine may read the secret in {str(secret)!r}: run `chmod"
            assert [each.startswith(said) for each in settings.warnings()] == [True] * is_open
        assert resolve_settings({name: "gone"}, home.environment).warnings() == []

    def test_a_switch_is_a_word(self, home: Home) -> None:
        with pytest.raises(InputError, match="TREADLE_TLS is 'maybe': give 'true' or 'false'"):
            home.values(TREADLE_TLS="maybe")


class TestTheServerOfAProfile:
    """A token must never reach a server that it is not for."""

    def test_the_default_profile_is_left_out_for_another_server(self, home: Home) -> None:
        home.write(PROFILES.replace('"test"', '"prod"', 1))
        assert home.values({"server": "other:1"}) == {"server": "other:1"}
        assert home.values(TREADLE_SERVER="other:1") == {"server": "other:1"}
        assert home.values({"server": "prod.example.com:443"})["token"] == SECRET

    def test_a_named_profile_is_refused_for_another_server(self, home: Home) -> None:
        home.write(PROFILES)
        for flags, variables in (
            ({"server": "other:1"}, {}),
            ({}, {"TREADLE_SERVER": "other:1"}),
        ):
            with pytest.raises(InputError, match=r"is for prod.example.com:443, .* names other:1"):
                home.values(flags, "prod", **variables)

    def test_it_takes_another_token(self, home: Home) -> None:
        home.write(PROFILES)
        values = home.values({"server": "other:1"}, profile="prod", TREADLE_TOKEN="another")
        assert (values["server"], values["token"], values["tls"]) == ("other:1", "another", True)


class TestTheFile:
    def test_without_one_there_are_no_profiles(self, home: Home) -> None:
        assert home.values() == {}
        with pytest.raises(InputError, match=r"no profile 'p': there is no file '.*config.toml'"):
            home.values(profile="p")
        assert resolve_settings({}, {}).config.path is None
        with pytest.raises(InputError, match="there is no home directory"):
            resolve_settings({}, {}, "p")

    def test_a_profile_that_is_missing_is_named_with_those_there_are(self, home: Home) -> None:
        home.write(PROFILES)
        with pytest.raises(InputError, match=r"no profile 'prdo' in '.*'; it has: prod, test$"):
            home.values(profile="prdo")
        home.write('default_profile = "gone"\n')
        with pytest.raises(InputError, match=r"default_profile names no profile: 'gone'"):
            home.values()

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("[profiles.a]\nserver = \n", "'FILE' is no valid TOML: Invalid value (at line 2"),
            ("# a\nprofile = 1\n", "'FILE' line 2: 'profile' is unknown: give default_profile"),
            ("[profiles.a]\n\nsrever = 'x'\n", "'FILE' line 3: 'srever' is unknown: a profile has"),
            ("[profiles.a]\ntls = 'yes'\n", "'FILE' line 2: the value of 'tls' must be true or"),
            ("[profiles.a]\nserver = 1\n", "'FILE' line 2: the value of 'server' must be a text"),
            ("[profiles.a]\nserver = ''\n", "'FILE' line 2: the value of 'server' must be a text"),
            ("[profiles.a]\ntls = 1\n", "'FILE' line 2: the value of 'tls' must be true or"),
            ("\nprofiles = 3\n", "'FILE' line 2: profiles is a table"),
            ("[profiles]\na = 3\n", "'FILE' line 2: profile 'a' is not a table"),
            ("default_profile = 3\n", "'FILE' line 1: default_profile is the name of a profile"),
            (
                f"[profiles.a]\ntoken = '{SECRET}'\ntoken_file = 't'\n",
                "'FILE' line 2: give either 'token' or 'token_file'",
            ),
            (
                f"[profiles.a]\nserver = '''\nx:1'''\ntoken = ['{SECRET}']\n",
                "'FILE' line 4: the value of 'token' must be a text",
            ),
            (f"[profiles.a]\ntoken = {SECRET}\n", "'FILE' is no valid TOML: Invalid value"),
            ("a = " + "[" * 5000, "'FILE' is n"),
        ],
    )
    def test_a_fault_has_its_line(self, home: Home, text: str, reason: str) -> None:
        assert home.fault(text).startswith(reason)

    def test_a_key_is_found_however_it_is_written(self) -> None:
        text = 'profiles.a.tls = 1\n[profiles."b.c"]\n"token" = [\n1]\n[ profiles . d ]\nx = 1\n'
        assert line_of(text, ("profiles", "a", "tls")) == 1
        assert line_of(text, ("profiles", "b.c", "token")) == 3
        assert line_of(text, ("profiles", "d", "x")) == 6
        assert line_of(text, ("profiles", "e")) == 0

    def test_what_cannot_be_read(self, home: Home) -> None:
        home.path.write_bytes(b"\n\xff")
        with pytest.raises(InputError, match="is not UTF-8 in line 2"):
            home.values()
        home.path.write_bytes(b"#" * (1 << 20) + b"#")
        with pytest.raises(InputError, match="is larger than"):
            home.values()
        home.path.unlink()
        home.path.mkdir()
        with pytest.raises(InputError, match="cannot be read: Is a directory"):
            home.values()

    def test_who_may_not_read_it(self, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*words: Any) -> Any:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("builtins.open", refuse)
        with pytest.raises(InputError, match=r"config.toml' cannot be read: Permission denied"):
            home.values()
        monkeypatch.setattr(os, "access", lambda *words: False)  # a home of somebody else
        assert home.values() == {}

    def test_its_token_is_never_shown(self, home: Home) -> None:
        home.write(PROFILES)
        settings = resolve_settings({}, home.environment, "prod")
        shown = [repr(settings), repr(settings.values), repr(settings.config), str(settings)]
        assert settings.values["token"].value == SECRET
        assert not [text for text in shown if "5ecret" in text]

    def test_it_warns_where_others_may_read_a_token(self, home: Home) -> None:
        home.write(PROFILES, mode=0o640)
        (warning,) = read_config(home.path).warnings
        assert warning.startswith(f"'{home.path}' holds a token and others may read or change it")
        home.write(PROFILES)
        assert read_config(home.path).warnings == ()
        home.write('[profiles.a]\nserver = "a:1"\n', mode=0o644)
        assert read_config(home.path).warnings == ()


class TestChanges:
    def test_comments_and_layout_stay(self, home: Home) -> None:
        home.write(PROFILES, mode=0o644)
        set_value(home.path, "prod", "server", "new.example.com:443")
        expected = PROFILES.replace("prod.example.com", "new.example.com")
        assert home.path.read_text() == expected
        assert home.path.stat().st_mode & 0o777 == 0o600

    def test_a_file_is_made(self, home: Home) -> None:
        home.path.parent.rmdir()
        set_value(home.path, "a.b", "tls", True)
        set_value(home.path, "", "default_profile", "a.b")
        assert home.values() == {"tls": True}
        assert home.path.stat().st_mode & 0o777 == 0o600
        assert home.path.parent.stat().st_mode & 0o777 == 0o700
        assert list(home.path.parent.iterdir()) == [home.path]

    def test_a_token_replaces_the_file_of_one(self, home: Home) -> None:
        set_value(home.path, "a", "token", "t")
        set_value(home.path, "a", "token_file", "/f")
        assert home.values(profile="a") == {"token_file": "/f"}
        set_value(home.path, "a", "token", "t")
        assert home.values(profile="a") == {"token": "t"}

    def test_a_profile_is_removed_with_its_last_key(self, home: Home) -> None:
        home.write(PROFILES)
        assert unset_value(home.path, "prod", "token")
        assert not unset_value(home.path, "prod", "token")
        assert not unset_value(home.path, "nobody", "token")
        assert unset_value(home.path, "test", "server")
        assert unset_value(home.path, "", "default_profile")
        assert list(read_config(home.path).profiles) == ["prod"]

    def test_a_link_stays_one(self, home: Home, tmp_path: Path) -> None:
        real = tmp_path / "dotfiles.toml"
        real.write_text(PROFILES)
        home.path.symlink_to(real)
        set_value(home.path, "prod", "tls", False)
        assert home.path.is_symlink()
        assert "tls = false" in real.read_text()

    def test_a_broken_file_is_left_alone(self, home: Home) -> None:
        home.write(f"token = {SECRET}")
        with pytest.raises(InputError, match="no valid TOML") as caught:
            set_value(home.path, "a", "tls", True)
        assert SECRET not in str(caught.value)
        assert home.path.read_text() == f"token = {SECRET}"
        home.write("profiles = 3\n")
        with pytest.raises(InputError, match="'profiles' is no table"):
            set_value(home.path, "a", "tls", True)

    def test_what_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match="cannot be"):
            set_value(tmp_path / "file" / "treadle" / "config.toml", "a", "tls", True)


class TestFromProfile:
    def test_a_client_of_a_profile(self, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in home.environment.items():
            monkeypatch.setenv(name, value)
        home.write(PROFILES.replace('ca_file = "ca.pem"', ""))
        with Client.from_profile("prod") as client:
            assert client.address == "prod.example.com:443"
            assert SECRET not in repr(vars(client)) + repr(vars(client._connection))
        with Client.from_profile() as client:
            assert client.address == "test.example.com:443"
        monkeypatch.setenv("TREADLE_SERVER", "127.0.0.1:1")
        with Client.from_profile() as client:
            assert client.address == "127.0.0.1:1"
        home.write('[profiles.a]\nserver = "a:1"\n')
        with pytest.raises(InputError, match="no profile 'b'"):
            Client.from_profile("b")

    def test_it_warns_of_a_file_that_others_read(
        self, home: Home, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CONFIG_HOME", home.environment["XDG_CONFIG_HOME"])
        home.write(PROFILES.replace('ca_file = "ca.pem"', ""), mode=0o644)
        with pytest.warns(UserWarning, match="run `chmod 600"):
            Client.from_profile("prod").close()
