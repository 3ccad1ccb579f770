"""`CallersAuthenticator` knows callers by tokens and certificates, and follows their file."""

from __future__ import annotations

import asyncio
import datetime
import hmac
import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from certificates import Authority

from treadle.server.access.caller import ANONYMOUS, Caller, Role
from treadle.server.access.callers.access_token import AccessToken, new_access_token
from treadle.server.access.callers.authenticator import CallersAuthenticator
from treadle.server.access.quotas import Quotas
from treadle.server.config import SettingError
from treadle.server.errors import StatusError

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)
ANN = '[callers.ann]\nrole = "trainer"\nmodels = ["team-a-*"]\n'
BOB = '[callers.bob]\nrole = "reader"\nmodels = ["*"]\n'


def entry(name: str, token: AccessToken, expires: datetime.datetime | None = None) -> str:
    """Returns the table of a token."""
    end = f"expires = {expires.isoformat()}\n" if expires else ""
    return f'[[callers.{name}.tokens]]\nid = "{token.id}"\nsha256 = "{token.sha256.hex()}"\n{end}'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "callers.toml"
    path.touch(0o600)
    return path


class Guarded:
    """An authenticator of a file, and what tests ask of it."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        path.write_text(text)
        self.authenticator = CallersAuthenticator(path)

    def caller(self, *headers: str, certificate: bytes = b"") -> Caller:
        """Returns who calls with these authorization headers and a certificate."""
        metadata = [("user-agent", "x"), *(("authorization", value) for value in headers)]
        context = {"x509_pem_cert": [certificate]} if certificate else {}
        return asyncio.run(self.authenticator.authenticate(metadata, context))

    def refusal(self, *headers: str, certificate: bytes = b"") -> str:
        """Returns with what a call is refused."""
        with pytest.raises(StatusError) as caught:
            self.caller(*headers, certificate=certificate)
        assert caught.value.code is grpc.StatusCode.UNAUTHENTICATED
        assert caught.value.details == ()
        return caught.value.message

    def write(self, text: str) -> None:
        """Replaces the file and has it read again."""
        fresh = self.path.with_name("fresh")
        fresh.touch(0o600)
        fresh.write_text(text)
        fresh.replace(self.path)
        self.look()

    def look(self) -> None:
        asyncio.run(self.authenticator.look())


def test_a_token_leads_to_its_caller(path: Path) -> None:
    one = new_access_token()
    two = new_access_token()
    end = (NOW + DAY).replace(microsecond=0)
    guarded = Guarded(path, ANN + entry("ann", one) + BOB + entry("bob", two, end))
    ann = guarded.caller(f"Bearer {one.text}")
    assert (ann.name, ann.role, ann.write_models) == ("ann", Role.TRAINER, ("team-a-*",))
    assert ann.credential_id == f"token:{one.id}"
    bob = guarded.caller(f"bearer {two.text}")
    assert bob.name == "bob"
    assert bob.valid_until_s == end.timestamp()
    assert one.text not in repr(guarded.authenticator) + repr(ann) + repr(one)


def test_answers_do_not_depend_on_whether_an_id_exists(path: Path) -> None:
    live = new_access_token()
    expired = new_access_token()
    text = ANN + entry("ann", live) + entry("ann", expired, NOW - DAY)
    guarded = Guarded(path, text)
    unknown = new_access_token()
    wrong_secret = f"treadle_{live.id}_{unknown.text[-64:]}"
    expired_wrong = f"treadle_{expired.id}_{unknown.text[-64:]}"
    answers = [
        guarded.refusal(f"Bearer {text}") for text in (unknown.text, wrong_secret, expired_wrong)
    ]
    assert len(set(answers)) == 1
    assert "mistyped, or was revoked" in answers[0]
    # The owner of the secret alone hears that it has expired.
    assert "the token has expired" in guarded.refusal(f"Bearer {expired.text}")
    guarded.write(ANN)
    assert guarded.refusal(f"Bearer {live.text}") == answers[0], "revoked"


def test_unknown_ids_take_the_same_work(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = new_access_token()
    guarded = Guarded(path, ANN + entry("ann", token))
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", compare)
    unknown = new_access_token()
    guarded.caller(f"Bearer {token.text}")
    guarded.refusal(f"Bearer treadle_{token.id}_{'0' * 64}")
    guarded.refusal(f"Bearer {unknown.text}")
    assert [(len(one), len(other)) for one, other in compared] == [(32, 32)] * 3


@pytest.mark.parametrize(
    ("headers", "complaint"),
    [
        ([], "this server requires a token: send the metadata 'authorization: Bearer TOKEN'"),
        ([""], "is not 'Bearer TOKEN'"),
        (["Bearer"], "is not 'Bearer TOKEN'"),
        (["Bearer "], "is not 'Bearer TOKEN'"),
        (["{}"], "is not 'Bearer TOKEN'"),
        (["Basic {}"], "is not 'Bearer TOKEN'"),
        (["Bearer  {}"], "is not 'Bearer TOKEN'"),
        (["Bearer {} "], "is not 'Bearer TOKEN'"),
        (["Bearer {}0"], "is not 'Bearer TOKEN'"),
        (["Bearer {}\n"], "is not 'Bearer TOKEN'"),
        (["Bearer {}, Bearer {}"], "is not 'Bearer TOKEN'"),
        (["Bearer \x00\udcff\xff" + "é" * 5000], "is not 'Bearer TOKEN'"),
        (["Bearer a.b.c"], "is not 'Bearer TOKEN'"),
        (["Bearer {}", "Bearer {}"], "the metadata 'authorization' more than once: send it once"),
        (["Bearer x", "Bearer {}"], "the metadata 'authorization' more than once: send it once"),
    ],
)
def test_other_headers_are_refused_and_not_repeated(
    path: Path, headers: list[str], complaint: str
) -> None:
    token = new_access_token()
    guarded = Guarded(path, ANN + entry("ann", token))
    answer = guarded.refusal(*(header.format(token.text, token.text) for header in headers))
    assert complaint in answer
    assert token.text[-20:] not in answer


def test_a_certificate_leads_to_its_caller_and_a_token_wins(path: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    robot = authority.issue("robot", dns=["robot.lab"], uris=["spiffe://lab/robot"]).cert
    other = authority.issue("other").cert
    both = authority.issue("robot2", dns=["shared.lab"], uris=["spiffe://lab/robot"]).cert
    token = new_access_token()
    guarded = Guarded(
        path,
        f'{ANN}certificates = ["URI:spiffe://lab/robot", "CN=robot"]\n'
        f'{BOB}certificates = ["DNS:shared.lab"]\n' + entry("bob", token),
    )
    ann = guarded.caller(certificate=robot)
    assert ann.name == "ann"
    assert ann.credential_id == "certificate:CN=robot"
    assert guarded.authenticator.is_valid(ann)
    assert (
        DAY / 2 < datetime.datetime.fromtimestamp(ann.valid_until_s, datetime.UTC) - NOW < DAY * 2
    )
    ended = replace(ann, valid_until_s=time.time() - 1)
    assert not guarded.authenticator.is_valid(ended), "in a long call"
    past = authority.issue("late", "robot", ends=-datetime.timedelta(minutes=1)).cert
    assert "has expired" in guarded.refusal(certificate=past), "on an open connection"
    assert guarded.caller(f"Bearer {token.text}", certificate=robot).name == "bob"
    assert "mistyped, or was revoked" in guarded.refusal(
        f"Bearer {new_access_token().text}", certificate=robot
    )
    assert "is of no caller of this server" in guarded.refusal(certificate=other)
    assert "has names of several callers" in guarded.refusal(certificate=both)
    assert "requires a token" in guarded.refusal(certificate=b"no certificate")
    guarded.write(BOB)
    assert not guarded.authenticator.is_valid(ann)
    assert "is of no caller of this server" in guarded.refusal(certificate=robot)


def test_a_credential_is_valid_while_it_gives_the_same_rights(path: Path) -> None:
    token = new_access_token()
    tokens = entry("ann", token)
    guarded = Guarded(path, ANN + tokens)
    ann = guarded.caller(f"Bearer {token.text}")
    valid = guarded.authenticator.is_valid
    assert valid(ann)
    assert valid(ANONYMOUS), "a call that is being authenticated"
    guarded.write(ANN + entry("ann", token, NOW + DAY))
    assert valid(ann)
    guarded.write(f"{ANN}quotas = {{ calls = 3 }}\n{tokens}# a comment\n")
    assert valid(ann)
    assert guarded.authenticator.quotas_of("ann") == guarded.caller(f"Bearer {token.text}").quotas
    guarded.write(f"[defaults.quotas]\ncalls = 9\n{ANN}{tokens}")
    assert guarded.authenticator.quotas_of("nobody") == Quotas(calls=9)
    for more in (ANN.replace('["team', '["x", "team'), '[callers.ann]\nrole = "admin"\n'):
        guarded.write(more + tokens)
        assert valid(ann), "more rights than before"
    for changed in (
        BOB,
        ANN,
        ANN.replace("trainer", "user") + tokens,
        ANN.replace("team-a", "team-b") + tokens,
        ANN + entry("ann", token, NOW - DAY),
        (ANN + tokens).replace("ann", "eve"),
    ):
        guarded.write(changed)
        assert not valid(ann), changed
        guarded.write(ANN + tokens)
        assert valid(ann)


def test_those_who_run_calls_are_asked_to_look(path: Path) -> None:
    guarded = Guarded(path, ANN)
    looks: list[int] = []
    guarded.authenticator.on_change(lambda: looks.append(1))
    guarded.look()
    guarded.look()
    assert len(looks) == 2


def test_watching_survives_a_fault(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guarded = Guarded(path, ANN)
    monkeypatch.setattr("treadle.server.access.callers.authenticator.LOOK_S", 0.0)
    looks: list[int] = []

    def fail() -> None:
        looks.append(1)
        raise RuntimeError("a fault")

    guarded.authenticator.on_change(fail)

    async def run() -> None:
        task = asyncio.create_task(guarded.authenticator.watch())
        while len(looks) < 3:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(asyncio.wait_for(run(), 60))


def rename(path: Path, text: str) -> None:
    fresh = path.with_name("fresh")
    fresh.touch(0o600)
    fresh.write_text(text)
    fresh.replace(path)


def overwrite(path: Path, text: str) -> None:
    path.write_text(text)


def overwrite_with_the_same_times(path: Path, text: str) -> None:
    before = path.stat()
    path.write_text(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def exchange_links(path: Path, text: str) -> None:
    """Replaces the file as the kubelet does: `..data` is a link to a folder."""
    folder = path.with_name(f"..{len(list(path.parent.iterdir()))}")
    folder.mkdir()
    (folder / "callers.toml").touch(0o600)
    (folder / "callers.toml").write_text(text)
    link = path.with_name("..data_tmp")
    link.symlink_to(folder.name)
    link.replace(path.with_name("..data"))
    if not path.is_symlink():
        path.unlink()
        path.symlink_to("..data/callers.toml")


@pytest.mark.parametrize(
    "change", [rename, overwrite, overwrite_with_the_same_times, exchange_links]
)
def test_a_change_is_noticed_however_it_is_made(
    path: Path, change: Callable[[Path, str], None]
) -> None:
    tokens = [new_access_token() for _ in range(4)]
    guarded = Guarded(path, ANN)
    for token in tokens:  # all of one size
        change(path, ANN + entry("ann", token))
        guarded.look()
        for other in tokens:
            header = f"Bearer {other.text}"
            if other is token:
                assert guarded.caller(header).name == "ann"
            else:
                guarded.refusal(header)


def test_a_broken_file_keeps_the_callers_and_is_logged_once(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    token = new_access_token()
    good = ANN + entry("ann", token)
    guarded = Guarded(path, good)

    def errors() -> list[str]:
        found = [record.getMessage() for record in caplog.records if record.levelno >= 40]
        caplog.clear()
        return found

    def looks() -> list[str]:
        for _ in range(3):
            guarded.look()
            assert guarded.caller(f"Bearer {token.text}").name == "ann"
        return errors()

    overwrite(path, good.replace("trainer", "root"))
    (error,) = looks()
    assert error == (
        f"the callers file cannot be used: {str(path)!r}: callers.ann.role must be reader, user, "
        "trainer or admin, not 'root'; its callers stay"
    )
    overwrite(path, "[")
    (error,) = looks()
    assert "is not TOML" in error
    overwrite(path, good)
    assert looks() == []
    for _ in range(2):
        path.chmod(0o602)
        (error,) = looks()
        assert "may be written by others (mode 0602): run chmod go-w" in error
        path.chmod(0o600)
        assert looks() == []
    path.rename(path.with_name("away"))
    (error,) = looks()
    assert "cannot be read: No such file or directory" in error
    rename(path, BOB)
    caplog.set_level(logging.INFO)
    guarded.look()
    assert "the callers file was read again: it has 1 callers" in caplog.text
    assert token.text not in caplog.text
    guarded.refusal(f"Bearer {token.text}")


def test_a_file_that_cannot_be_used_is_refused_at_start(tmp_path: Path) -> None:
    path = tmp_path / "callers.toml"

    def fault() -> str:
        with pytest.raises(SettingError) as caught:
            CallersAuthenticator(path)
        assert caught.value.setting == "callers_file"
        return str(caught.value)

    assert "which cannot be read: No such file or directory; `treadle-server token" in fault()
    path.mkdir()
    assert "which is not a regular file; give one" in fault()
    path.rmdir()
    os.mkfifo(path, 0o600)
    assert "which is not a regular file; give one" in fault()
    path.unlink()
    path.touch(0o600)
    path.write_text("x = 1")
    assert fault() == (
        f"--callers-file {str(path)!r}: x is not a known key; use defaults, callers, oidc"
    )
    for mode in (0o620, 0o602):
        path.chmod(mode)
        assert f"which may be written by others (mode {mode:04o}): run chmod go-w" in fault()
    path.chmod(0o600)
    with path.open("wb") as file:
        file.truncate((8 << 20) + 1)
    assert "which is larger than 8388608 bytes; shorten it" in fault()


def test_a_file_that_others_may_read_and_one_without_callers_are_warned_of(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Guarded(path, ANN + entry("ann", new_access_token()))
    assert caplog.text == ""
    path.chmod(0o640)
    Guarded(path, ANN)
    assert "nobody can call this server" in caplog.text
    caplog.clear()
    path.chmod(0o644)
    Guarded(path, ANN + entry("ann", new_access_token()))
    assert "every user of this machine may read who may call" in caplog.text
