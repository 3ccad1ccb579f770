"""The client and the command line against the real server with TLS and callers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from certificates import Authority

from treadle.client import (
    Client,
    NotFoundError,
    PermissionDeniedError,
    QuotaExceededError,
    TokenFile,
    UnauthenticatedError,
)

from .shell import PATIENCE_S, complaint, environment, run


class Site:
    """A server with TLS, and its callers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        authority = Authority(folder / "certificates")
        self.pair = authority.server()
        self.ca = str(authority.ca_file)
        self.callers = folder / "callers.toml"
        self.address = ""
        self.admin = self.token("root", "--role", "admin", "--models", "*")
        self.ann = self.token("ann", "--role", "trainer", "--models", "team-a-*")
        self.bob = self.token("bob", "--role", "reader", "--models", "*")
        self.dan = [self.token("dan", "--role", "trainer", "--models", "dan-*"), self.token("dan")]
        self.eve = self.token("eve", "--role", "user", "--models", "*", "--quota", "calls=1")

    def token(self, *words: str) -> str:
        """Makes a token and its caller."""
        return self.manage("create", *words)

    def manage(self, *words: str) -> str:
        """Runs `treadle-server token`."""
        command = [sys.executable, "-m", "treadle.server", "token", *words]
        command += ["--callers-file", str(self.callers)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def client(self, token: str) -> Client:
        return Client(self.address, ca_file=self.ca, token=token, timeout_s=PATIENCE_S)

    def run(self, token: str, *words: str) -> subprocess.CompletedProcess[bytes]:
        return run(self.address, *words, TREADLE_CA_FILE=self.ca, TREADLE_TOKEN=token)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    site = Site(folder)
    words = ["--address", "127.0.0.1:0", "--data-dir", str(folder / "data")]
    words += ["--tls-cert-file", str(site.pair.cert_file)]
    words += ["--tls-key-file", str(site.pair.key_file), "--callers-file", str(site.callers)]
    with (
        open(folder / "log", "wb") as log,
        subprocess.Popen(
            [sys.executable, "-m", "treadle.server", *words],
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment(),
        ) as process,
    ):
        assert process.stdout is not None
        ready = process.stdout.readline().decode()
        assert "listening on" in ready, (folder / "log").read_text()
        site.address = ready.split()[-1]
        with site.client(site.ann) as client:
            client.train("hello", model="team-a-hello", max_steps=20).result()
        yield site
        process.terminate()
        assert process.wait(120) == 0


def test_a_caller_sees_who_it_is(site: Site) -> None:
    with site.client(site.ann) as client:
        caller = client.server_info().caller
    assert (caller.name, list(caller.write_models)) == ("ann", ["team-a-*"])
    done = site.run(site.ann, "info")
    facts = dict(line.split(maxsplit=1) for line in done.stdout.decode().splitlines())
    assert (facts["caller"], facts["role"]) == ("ann", "trainer")


def test_a_token_opens_every_kind_of_call(site: Site) -> None:
    with site.client(site.ann) as client:
        assert client.health()
        assert client.generate_text("team-a-hello", "h", max_new_tokens=2)
        assert client.score_text("team-a-hello", "hello").token_count
        assert len(list(client.score_stream("team-a-hello", ["he", "llo"]))) == 2
        (job,) = client.jobs()
        assert client.watch(job.id).result().name == "team-a-hello"


@pytest.mark.parametrize("token", [None, "treadle_nobody_0", "wrong"])
def test_who_is_not_known(site: Site, token: str | None) -> None:
    with Client(site.address, ca_file=site.ca, token=token) as client:
        with pytest.raises(UnauthenticatedError) as caught:
            client.server_info()
        with pytest.raises(UnauthenticatedError):
            client.generate_text("team-a-hello", "h")
        assert client.health()
    assert "token" in str(caught.value)
    assert not token or token not in str(caught.value)


def test_the_command_line_asks_for_a_token(site: Site) -> None:
    said = complaint(run(site.address, "--ca-file", site.ca, "models"), 1)
    assert said.endswith("serves known callers only: give --token-file, or set TREADLE_TOKEN")


def test_what_a_caller_may_not_do(site: Site) -> None:
    with site.client(site.bob) as client:
        assert [model.name for model in client.models()] == ["team-a-hello"]
        with pytest.raises(PermissionDeniedError, match="requires the role user") as caught:
            client.generate_text("team-a-hello", "h")
        assert not isinstance(caught.value, UnauthenticatedError)
    with site.client(site.ann) as client, pytest.raises(NotFoundError):
        client.generate_text("team-b-hello", "h")


def test_a_quota_of_a_caller(site: Site) -> None:
    with site.client(site.eve) as client, client.open_score_stream("team-a-hello") as stream:
        stream.send("hello")
        with pytest.raises(QuotaExceededError, match="your quota calls is used up") as caught:
            client.server_info()
        assert caught.value.quota == "calls"
        assert caught.value.retry_delay_s
        said = complaint(site.run(site.eve, "info"), 1)
    assert "your quota calls is used up: 1 of 1 calls run" in said
    assert "(try again in " in said


def test_a_profile(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for key, value, data in (
        ("server", [site.address], ""),
        ("ca_file", [site.ca], ""),
        ("token", [], site.ann),
    ):
        subprocess.run(
            [sys.executable, "-m", "treadle.client", "config", "set", key, *value],
            input=data.encode(),
            check=True,
            capture_output=True,
        )
    with Client.from_profile() as client:
        assert client.server_info().caller.name == "ann"


def test_a_token_that_is_replaced_while_a_run_is_watched(site: Site, tmp_path: Path) -> None:
    """The server ends the call of the old token; the run continues with the new one."""
    path = tmp_path / "token"
    path.write_text(site.dan[0])
    with Client(site.address, ca_file=site.ca, token=TokenFile(path)) as client:
        run_ = client.train("hello " * 100, model="dan-m", max_time_s=600, timeout_s=PATIENCE_S)
        next(event for event in run_ if event.HasField("progress"))
        path.write_text(site.dan[1])
        broken: list[Exception] = []
        run_.on_break = broken.append
        site.manage("revoke", site.dan[0].split("_")[1])
        for _ in run_:
            if broken:
                client.cancel_job(run_.job)
    assert isinstance(broken[0], UnauthenticatedError)


def test_no_secret_is_in_the_log_of_the_server(site: Site) -> None:
    log = (site.folder / "log").read_text()
    for token in (site.admin, site.ann, site.bob, site.eve):
        assert token.rpartition("_")[2] not in log
