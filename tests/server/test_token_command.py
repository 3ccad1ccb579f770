"""`treadle-server token` makes, lists, revokes and replaces tokens, and keeps the file as it is."""

from __future__ import annotations

import datetime
import fcntl
import hashlib
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from treadle.server.access.callers import callers_editor
from treadle.server.access.callers.callers_file import CallersFile, parse_callers
from treadle.server.cli import main

TOKEN = re.compile(r"treadle_([0-9a-f]{16})_[0-9a-f]{64}\n")
CREATE = ["create", "ci", "--role", "trainer", "--models", "team-a-*"]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "callers.toml"


@pytest.fixture
def run(path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command; returns the exit code, standard output and standard error."""
    monkeypatch.setenv("TREADLE_CALLERS_FILE", str(path))

    def run(*words: str) -> tuple[int, str, str]:
        try:
            code = main(["token", *words])
        except SystemExit as end:
            code = int(str(end.code))
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def read(path: Path) -> CallersFile:
    return parse_callers(path.read_bytes(), path)


def test_create_prints_the_secret_alone_and_stores_its_hash(run: Run, path: Path) -> None:
    code, out, err = run(
        *CREATE,
        "--read-models",
        "shared,names",
        "--read-models",
        "x",
        "--expires",
        "90d",
        "--quota",
        "tokens_per_minute=60000",
        "--quota",
        "calls=unlimited",
    )
    assert code == 0
    found = TOKEN.fullmatch(out)
    assert found
    assert f"Token {found[1]} of ci (trainer, models team-a-*, shared (read)" in err
    text = path.read_text()
    secret = out.strip().rpartition("_")[2]
    assert secret not in text + err
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    record = read(path).callers["ci"]
    (token,) = record.tokens
    assert token.sha256 == hashlib.sha256(out.strip().encode()).digest()
    assert token.created is not None
    assert token.expires == token.created + datetime.timedelta(days=90)
    assert record.caller.read_models == ("team-a-*", "shared", "names", "x")
    assert record.caller.quotas.tokens_per_minute == 60000
    assert list(path.parent.iterdir()) == [path]


def test_a_known_caller_gets_one_more_token(run: Run, path: Path) -> None:
    first = run(*CREATE)[1]
    second = run("create", "ci")[1]
    third = run(*CREATE)[1]
    assert len({first, second, third}) == 3
    assert len(read(path).callers["ci"].tokens) == 3
    for words in (["--role", "user"], ["--models", "*"], ["--quota", "calls=1"]):
        code, out, err = run("create", "ci", *words)
        assert (code, out) == (1, "")
        assert "there is a caller 'ci' already, with the role trainer" in err
        assert f"leave out {words[0]}" in err


def test_what_is_in_the_file_stays_as_it_is(run: Run, path: Path) -> None:
    text = (
        "# Whose they are.\n\n[defaults.quotas]\ncalls = 4   # for everybody\n\n"
        '[callers."b.c"] # ann\nrole   =  "user"\nmodels = [\n  "a", # one\n  "b",\n]\n\n'
        "# The end.\n"
    )
    path.write_text(text)
    path.chmod(0o640)
    assert run(*CREATE)[0] == 0
    assert run("create", "b.c")[0] == 0
    assert run("create", "root", "--role", "admin")[0] == 0
    after = path.read_text()
    assert [line for line in text.splitlines() if line not in after.splitlines()] == []
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    file = read(path)
    assert list(file.callers) == ["b.c", "ci", "root"]
    assert file.callers["ci"].caller.quotas.calls == 4
    for name in file.callers:
        assert run("revoke", name)[0] == 0
    assert [line for line in text.splitlines() if line not in path.read_text().splitlines()] == []
    assert not any(record.tokens for record in read(path).callers.values())


def test_callers_between_other_tables_can_be_changed(run: Run, path: Path) -> None:
    path.write_text(
        '[callers.a]\nrole = "reader"\nmodels = ["*"]\n[defaults.quotas]\ncalls = 1\n'
        '[callers.b]\nrole = "reader"\nmodels = ["*"]\n'
    )
    path.chmod(0o600)
    for name in ("a", "b"):
        assert run("create", name)[0] == 0
        assert run("rotate", name)[0] == 0
    assert run("create", "c", "--role", "admin")[0] == 0
    file = read(path)
    counts = {name: len(record.tokens) for name, record in file.callers.items()}
    assert counts == {"a": 2, "b": 2, "c": 1}
    for name in ("a", "b", "c"):
        assert run("revoke", name)[0] == 0
    assert not any(record.tokens for record in read(path).callers.values())


def test_callers_in_one_line_can_be_changed(run: Run, path: Path) -> None:
    path.write_text('[callers]\na = { role = "reader", models = ["*"] } # one line\n')
    path.chmod(0o600)
    assert run("create", "a")[0] == 0
    assert run("create", "a")[0] == 0
    ids = [token.id for token in read(path).callers["a"].tokens]
    assert run("revoke", ids[0])[0] == 0
    assert [token.id for token in read(path).callers["a"].tokens] == ids[1:]
    assert "# one line" in path.read_text()


def test_list_has_no_secrets(run: Run, path: Path) -> None:
    tokens = [run(*CREATE, "--expires", "90d")[1], run("create", "ci")[1]]
    path.write_text(path.read_text() + '[callers.robot]\nrole="user"\nmodels=["a"]\n')
    with path.open("a") as file:
        file.write('certificates = ["CN=robot"]\n[callers.idle]\nrole="admin"\n')
    code, out, err = run("list")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert re.split("  +", lines[0]) == [
        "CALLER",
        "ROLE",
        "MODELS",
        "CREDENTIAL",
        "CREATED",
        "EXPIRES",
    ]
    assert len(lines) == 5
    assert lines[2].endswith("never")
    assert re.split("  +", lines[3]) == ["robot", "user", "a", "CN=robot"]
    assert re.split("  +", lines[4]) == ["idle", "admin", "*", "none"]
    printed = run("list", "--json")[1]
    callers = {caller["name"]: caller for caller in json.loads(printed)["callers"]}
    assert callers["ci"]["write_models"] == ["team-a-*"]
    assert [token["expired"] for token in callers["ci"]["tokens"]] == [False, False]
    assert callers["robot"]["certificates"] == ["CN=robot"]
    for token in tokens:
        assert token.strip().rpartition("_")[2] not in out + printed
        assert hashlib.sha256(token.strip().encode()).hexdigest() not in out + printed


def test_revoke_removes_one_token_or_all_of_a_caller(run: Run, path: Path) -> None:
    for _ in range(3):
        run(*CREATE)
    run("create", "other", "--role", "admin")
    ids = [token.id for token in read(path).callers["ci"].tokens]
    code, out, err = run("revoke", ids[1])
    assert (code, out, err) == (0, "", f"Token {ids[1]} of ci is revoked.\n")
    assert [token.id for token in read(path).callers["ci"].tokens] == [ids[0], ids[2]]
    assert run("revoke", "ci")[0] == 0
    assert read(path).callers["ci"].tokens == ()
    assert len(read(path).callers["other"].tokens) == 1
    for target, why in (("ci", "has no token"), (ids[1], "no such caller and no such token id")):
        code, out, err = run("revoke", target)
        assert (code, out) == (1, "")
        assert why in err


def test_revoke_says_that_certificates_stay(run: Run, path: Path) -> None:
    run(*CREATE)
    path.write_text(path.read_text().replace("[[", 'certificates = ["CN=ci"]\n[[', 1))
    assert "The client certificates of ci are still accepted" in run("revoke", "ci")[2]


def test_rotate_lets_the_old_token_expire(run: Run, path: Path) -> None:
    run(*CREATE, "--expires", "90d")
    code, out, _ = run("rotate", "ci", "--overlap", "2h")
    assert code == 0
    found = TOKEN.fullmatch(out)
    assert found
    old, new = read(path).callers["ci"].tokens
    assert new.id == found[1]
    assert new.created is not None
    assert new.expires == new.created + datetime.timedelta(days=90)
    assert old.expires == new.created + datetime.timedelta(hours=2)
    run("rotate", new.id, "--overlap", "0s", "--expires", "never")
    older, middle, newest = read(path).callers["ci"].tokens
    assert older == old
    assert middle.expires == newest.created
    assert newest.expires is None
    run("rotate", "ci")
    assert read(path).callers["ci"].tokens[0] == old, "an earlier end stays"
    assert run("rotate", "nobody")[0] == 1


def test_commands_at_once_lose_nothing(path: Path) -> None:
    command = [sys.executable, "-m", "treadle.server", "token", "create"]
    started = [
        subprocess.Popen(
            [*command, f"c{number}", "--role", "admin", "--callers-file", str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for number in range(6)
    ]
    printed = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0] * 6, printed
    known = {token.sha256 for record in read(path).callers.values() for token in record.tokens}
    assert known == {hashlib.sha256(out.strip()).digest() for out, _ in printed}
    assert list(path.parent.iterdir()) == [path]


def test_a_lock_that_is_not_released_is_said(
    run: Run, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callers_editor, "_LOCK_S", 0.1)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        code, out, err = run(*CREATE)
    finally:
        os.close(folder)
    assert (code, out) == (1, "")
    assert "is locked: another command has held it for 0.1 seconds; try again" in err
    assert not path.exists()


def test_the_target_of_a_link_is_replaced_and_not_the_link(run: Run, path: Path) -> None:
    target = path.with_name("real") / "file"
    target.parent.mkdir()
    path.symlink_to(target)
    assert run(*CREATE)[0] == 0
    assert path.is_symlink()
    assert "ci" in read(target).callers


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser can give files away")
def test_the_owner_stays_where_the_superuser_changes_the_file(run: Run, path: Path) -> None:
    run(*CREATE)
    os.chown(path, 12345, 54321)
    path.chmod(0o440)
    assert run("create", "ci")[0] == 0
    status = path.stat()
    assert (status.st_uid, status.st_gid) == (12345, 54321)
    assert stat.S_IMODE(status.st_mode) == 0o440


def test_a_crash_while_writing_leaves_the_old_file(
    run: Run, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(*CREATE)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    code, out, err = run("create", "ci")
    assert (code, out) == (1, "")
    assert err.endswith("cannot be written: No space left on device\n")
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_token_that_cannot_be_printed_can_be_revoked(path: Path, unbuffered: str) -> None:
    command = [sys.executable, "-m", "treadle.server", "token", *CREATE, "--callers-file"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*command, str(path)],
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    (token,) = read(path).callers["ci"].tokens
    assert f"revoke {token.id}" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["make"], "argument COMMAND: invalid choice: 'make'"),
        (["create"], "the following arguments are required: NAME"),
        (["create", "oidc:x"], "argument NAME: must be 1 to 100 letters, digits"),
        (["create", "x", "--role", "root"], "argument --role: invalid choice: 'root'"),
        (["create", "x", "--models", "a,"], "argument --models: must have patterns, each a mod"),
        (["create", "x", "--models", "a b"], "argument --models: must have patterns, each a mod"),
        (["create", "x", "--quota", "calls"], "argument --quota: must be NAME=N with one of calls"),
        (["create", "x", "--quota", "cals=1"], "argument --quota: must be NAME=N with one of cal"),
        (["create", "x", "--quota", "calls=-1"], "argument --quota: calls must be a whole number"),
        (["create", "x", "--expires", "90"], "argument --expires: must be a number with s, m, h"),
        (["create", "x", "--expires", "0d"], "argument --expires: must be longer than 0, or never"),
        (["create", "x", "--expires", "36501d"], "argument --expires: must be at most 36500d"),
        (["rotate", "x", "--overlap", "never"], "argument --overlap: must be a number with s, m"),
        (["list", "--callers-file", ""], "--callers-file or TREADLE_CALLERS_FILE must name the"),
    ],
)
def test_wrong_words_end_with_2_and_one_line(
    run: Run, path: Path, words: list[str], complaint: str
) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert re.fullmatch(r"treadle-server token( \w+)?: .* \(see `[a-z -]+ --help`\)\n", err)
    assert complaint in err
    assert not path.exists()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["create", "x"], "has no caller 'x', and to make one it needs --role, one of reader"),
        (["create", "x", "--role", "user"], "and to make one it needs --models, such as 'team-a"),
        (
            ["create", "x", "--role", "user", "--write-models", "a"],
            "callers.x.write_models needs the role trainer, not user; use read_models",
        ),
        (["create", "x", "--role", "admin", "--models", "a"], "does not limit an admin"),
        (["list"], "cannot be read: No such file or directory"),
        (["revoke", "x"], "cannot be read: No such file or directory"),
    ],
)
def test_what_cannot_be_done_ends_with_1_and_one_line(
    run: Run, path: Path, words: list[str], complaint: str
) -> None:
    code, out, err = run(*words)
    assert (code, out) == (1, "")
    assert complaint in err
    assert err.count("\n") == 1
    assert not path.exists()


def test_a_broken_file_is_not_changed(run: Run, path: Path) -> None:
    path.write_text("[callers.x]\nrole = 'root'\n")
    path.chmod(0o600)
    for words in (CREATE, ["list"], ["revoke", "x"], ["rotate", "x"]):
        code, out, err = run(*words)
        assert (code, out) == (1, "")
        assert "callers.x.role must be reader, user, trainer or admin, not 'root'" in err
    path.chmod(0o620)
    assert "may be written by others (mode 0620): run chmod go-w" in run(*CREATE)[2]
    assert path.read_text() == "[callers.x]\nrole = 'root'\n"


def test_a_token_given_as_a_name_is_not_repeated(run: Run, path: Path) -> None:
    token = run(*CREATE)[1].strip()
    for words in (
        ["revoke", token],
        ["rotate", token],
        ["create", token, "--role", "admin"],
        ["revoke", "ci", token],
        ["list", f"--token={token}"],
    ):
        code, out, err = run(*words)
        assert code == 2
        assert token[-20:] not in out + err


def test_the_help_names_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "treadle-server token --help" in " ".join(capsys.readouterr().out.split())


def test_the_command_imports_no_numerics(path: Path) -> None:
    code = (
        "import sys; from treadle.server.cli import main\n"
        f"main(['token', 'create', 'x', '--role', 'admin', '--callers-file', {str(path)!r}])\n"
        "main(['token', 'list', '--callers-file', sys.argv[1]])\n"
        "print(sorted({'numpy', 'numba', 'grpc', 'jwt', 'cryptography'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.endswith("[]\n")
