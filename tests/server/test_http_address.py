"""The HTTP address: probes, who may call it from a browser, its start, its end and its TLS."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from certificates import HOUR, Authority, Pair, copy_over, write
from starlette.applications import Starlette

from treadle.server.app import announce
from treadle.server.config import MalformedSettingError, ServerConfig
from treadle.server.http import probes
from treadle.server.http.app import http_app
from treadle.server.http.http_server import HttpServer
from treadle.server.resources.memory_budget import MemoryBudget
from treadle.v1 import sequence_pb2 as pb

from .harness import PATIENCE_S, TEXT, Server, first_progress, long_spec, requests, wait_for
from .web import SERVICE, Web, envelope, serialized

Start = Callable[..., Server]

PAGE = "https://page.example"


def test_the_probes_say_that_it_runs_and_serves(web: Web) -> None:
    assert web.get("/healthz").body == b"ok\n"
    assert web.get("/readyz").body == b"ready\n"
    assert web.get("/nothing").status == 404


def test_every_response_has_an_id_and_the_headers_of_security(web: Web) -> None:
    answer = web.get("/healthz")
    assert len(answer.headers["x-request-id"]) == 16
    assert web.get("/healthz", x_request_id="mine").headers["x-request-id"] == "mine"
    assert web.get("/healthz", x_request_id="not one").headers["x-request-id"] != "not one"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "server" not in answer.headers
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:8080", 200),
        ("[::1]:8080", 200),
        ("localhost:8080", 200),
        ("app.localhost", 200),
        ("LOCALHOST.", 200),
        ("treadle:8080", 200),
        ("rebound.example", 421),
        ("rebound.example:8080", 421),
        ("127.0.0.1.rebound.example", 421),
        ("127.0.0.1@rebound.example", 421),
        ("rebound.example/127.0.0.1", 421),
    ],
)
def test_a_name_that_leads_here_may_not_be_that_of_a_page(web: Web, host: str, status: int) -> None:
    assert web.post(f"{SERVICE}/ListModels", {}, host=host).status == status
    assert web.get("/readyz", host=host).status == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": PAGE}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://["}, 403),
        ({"origin": "http://localhost:9999"}, 403),
        ({"origin": "http://localhost", "host": "localhost"}, 200),
        ({"origin": PAGE, "sec-fetch-site": "same-origin"}, 200),  # behind a reverse proxy
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 403),
        ({"sec-fetch-site": "none"}, 200),
    ],
)
def test_a_page_of_another_site_may_not_call(
    web: Web, headers: dict[str, str], status: int
) -> None:
    assert web.post(f"{SERVICE}/ListModels", {}, **headers).status == status


def test_a_link_of_another_site_may_be_followed(web: Web) -> None:
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert web.get("/", **headers).status == 200
    assert web.get("/", **{"sec-fetch-site": "cross-site"}).status == 403


def test_origins_and_names_that_are_allowed_may_call(start: Start) -> None:
    server = start(
        *("--http-address", "localhost:0", "--http-allow-origin", f"{PAGE}, https://b.c/"),
        *("--http-allow-host", "Treadle.example"),
    )
    web = Web(server.http_url)
    assert web.post(f"{SERVICE}/ListModels", {}, host="treadle.example:80").status == 200
    assert web.post(f"{SERVICE}/ListModels", {}, host="rebound.example").status == 421
    asked = {
        "origin": PAGE,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,connect-protocol-version",
    }
    preflight = web.ask("OPTIONS", f"{SERVICE}/ListModels", None, **asked)
    assert preflight.status == 200
    assert preflight.headers["access-control-allow-origin"] == PAGE
    of_openai = "authorization,content-type,x-stainless-lang,x-stainless-retry-count"
    asked["access-control-request-headers"] = of_openai
    assert web.ask("OPTIONS", "/v1/completions", None, **asked).status == 200
    answer = web.post(f"{SERVICE}/ListModels", {}, origin=PAGE)
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "access-control-allow-credentials" not in answer.headers
    assert web.post(f"{SERVICE}/ListModels", {}, origin="https://b.c").status == 200
    assert web.post(f"{SERVICE}/ListModels", {}, origin="https://other.example").status == 403
    assert server.end() == 0


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a server that cannot start."""
    command = [sys.executable, "-m", "treadle.server", "--address", "127.0.0.1:0", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_an_address_that_cannot_be_is_named(tmp_path: Path, web: Web) -> None:
    taken = web.url.removeprefix("http://")
    for address, said, code in (
        ("nonsense", "--http-address 'nonsense' lacks a port", 2),
        (taken, f"cannot listen on {taken}: address already in use", 1),
    ):
        ended = run("--data-dir", str(tmp_path / "data"), "--http-address", address)
        assert ended.returncode == code
        assert said in ended.stderr
        assert "--http-address" in ended.stderr
        assert "Traceback" not in ended.stderr
        assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("http_allow_origin", "https://a.b,page.example", "'page.example', which is not an origin"),
        ("http_allow_origin", "https://a.b/page", "not an origin"),
        ("http_allow_host", "a.b, a.b:80", "'a.b:80', which is not the name of a host"),
        ("http_allow_host", "https://a.b", "not the name of a host"),
    ],
)
def test_an_entry_that_could_never_match_is_refused(setting: str, value: str, said: str) -> None:
    config = ServerConfig(**{setting: value})  # type: ignore[arg-type]
    unused: Any = None
    with pytest.raises(MalformedSettingError, match=said):
        http_app(unused, config, MemoryBudget(1), lambda: True, unused)


def test_the_lines_name_both_addresses_and_who_reaches_them(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    announce("127.0.0.1:1", ServerConfig(http_address="0.0.0.0:2"), "http://0.0.0.0:2")
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("listening on 127.0.0.1:1")
    assert second.endswith("answers HTTP at http://0.0.0.0:2")
    assert "everybody on any network" in caplog.text
    assert "(--http-address)" in caplog.text


@pytest.mark.parametrize("form", ["unix:{}", "unix-abstract:{}"])
def test_it_may_be_a_socket(tmp_path: Path, form: str) -> None:
    path = tmp_path / "http.socket"
    address = form.format(path)

    async def test() -> None:
        server = HttpServer(Starlette(routes=probes.routes(lambda: False)))
        assert await server.start(address) == address
        reader, writer = await asyncio.open_unix_connection(
            str(path) if form == "unix:{}" else f"\0{path}"
        )
        writer.write(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert (await reader.read()).endswith(b"ok\n")
        writer.close()
        await server.stop(1.0)
        assert not path.exists()

    asyncio.run(test())


def test_it_is_not_ready_before_the_kernels_are() -> None:
    ready = [False]

    async def test() -> None:
        server = HttpServer(Starlette(routes=probes.routes(lambda: ready[0])))
        web = Web(await server.start("127.0.0.1:0"))
        assert (await asyncio.to_thread(web.get, "/readyz")).status == 503
        assert (await asyncio.to_thread(web.get, "/healthz")).status == 200
        ready[0] = True
        assert (await asyncio.to_thread(web.get, "/readyz")).status == 200
        await server.stop(1.0)

    asyncio.run(test())


def test_streams_end_with_a_reason_when_the_server_ends(start: Start) -> None:
    server = start("--http-address", "127.0.0.1:0", "--grace-s", "3")
    running = server.caller.train(long_spec("running"), TEXT)
    job = first_progress(running).job
    web = Web(server.http_url)
    request = serialized(pb.WatchJobRequest(job=job), "json")
    ends: list[int] = []
    with web.open(
        "POST",
        f"{SERVICE}/WatchJob",
        envelope(request),
        content_type="application/connect+json",
    ) as response:
        assert response.read(5)
        ending = threading.Thread(target=lambda: ends.append(server.end()))
        ending.start()
        rest = response.read()
        ending.join()
    assert ends == [0]
    last = json.loads(rest[rest.rindex(b'{"metadata"') :])
    assert last["error"]["code"] in ("unavailable", "aborted")
    assert "shut down" in last["error"]["message"]


def test_a_client_that_leaves_ends_its_call(http_server: Server, web: Web, http_model: str) -> None:
    info = http_server.caller.info
    request = pb.GenerateRequest(model=http_model, max_new_tokens=100_000)
    with web.open(
        "POST",
        f"{SERVICE}/Generate",
        serialized(request, "json"),
        content_type="application/json",
    ) as response:
        assert response.read(10)
        assert info().sessions_running == 1
    wait_for(lambda: info().sessions_running == 0)


def test_a_client_that_leaves_before_the_end_of_its_body_ends_its_call(
    http_server: Server, web: Web, http_model: str
) -> None:
    request = pb.GenerateRequest(model=http_model, max_new_tokens=100_000)
    body = envelope(serialized(request, "json"))
    with web.connection() as connection:
        connection.putrequest("POST", f"{SERVICE}/Generate")
        connection.putheader("Content-Type", "application/connect+json")
        connection.putheader("Content-Length", str(len(body) + 1))
        connection.endheaders(body)
        time.sleep(0.2)  # in which the call would begin, if it did not wait for the rest
        assert http_server.caller.info().sessions_running == 0


def test_an_upload_that_breaks_off_trains_nothing(http_server: Server, web: Web) -> None:
    before = [job.id for job in http_server.caller.jobs()]
    sent = [envelope(serialized(request, "proto")) for request in requests(long_spec("cut"), TEXT)]
    with web.connection() as connection:
        connection.putrequest("POST", f"{SERVICE}/Train")
        connection.putheader("Content-Type", "application/connect+proto")
        connection.putheader("Content-Length", "100000")
        connection.endheaders()
        connection.send(b"".join(sent[:-1]))
    wait_for(lambda: http_server.caller.info().training_queued == 0)
    assert [job.id for job in http_server.caller.jobs()] == before


def test_a_follower_that_leaves_before_the_end_of_its_body_ends_its_call(
    http_server: Server, web: Web
) -> None:
    sent = [envelope(serialized(each, "proto")) for each in requests(long_spec("left"), TEXT)]
    with web.connection() as connection:
        connection.putrequest("POST", f"{SERVICE}/Train")
        connection.putheader("Content-Type", "application/connect+proto")
        connection.putheader("Content-Length", "100000")
        connection.endheaders(b"".join(sent))
        assert connection.getresponse().read(10)
        assert running(web, "Train") == 1
    wait_for(lambda: running(web, "Train") == 0)
    for job in http_server.caller.jobs(model="left"):
        http_server.caller.stub.CancelJob(pb.CancelJobRequest(job=job.id))


def running(web: Web, method: str) -> float:
    """Returns how many calls of a method run, by the metrics."""
    counts = {"started": 0.0, "handled": 0.0}
    for line in web.get("/metrics").body.decode().splitlines():
        found = re.match(rf'grpc_server_(\w+)_total{{.*grpc_method="{method}".*}} (\S+)', line)
        if found and found[1] in counts:
            counts[found[1]] += float(found[2])
    return counts["started"] - counts["handled"]


_ROBOT = b"""[callers.machine]
role = "user"
models = ["*"]
certificates = ["CN=robot"]
"""


class Mutual:
    """A server with TLS that asks for certificates of clients, and knows one caller by its name."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder / "authority")
        self.pair = self.authority.server()
        self.robot = self.authority.issue("robot")
        self.client_ca = folder / "clients.pem"
        write(self.client_ca, self.authority.ca, 0o644)
        callers = folder / "callers.toml"
        write(callers, _ROBOT, 0o600)
        pair = self.pair
        self.server = Server(
            folder / "data",
            *("--standby-workers", "0", "--http-address", "127.0.0.1:0"),
            *("--tls-cert-file", str(pair.cert_file), "--tls-key-file", str(pair.key_file)),
            *("--tls-client-ca-file", str(self.client_ca), "--callers-file", str(callers)),
        )

    def context(self, shown: Pair | None) -> ssl.SSLContext:
        """Returns how a client connects that shows a certificate."""
        context = ssl.create_default_context(cafile=str(self.authority.ca_file))
        if shown is not None:
            context.load_cert_chain(shown.cert_file, shown.key_file)
        return context

    def web(self, shown: Pair | None = None) -> Web:
        """Returns a client that shows a certificate."""
        return Web(self.server.http_url, self.context(shown or self.robot))

    def seen(self) -> bytes:
        """Returns the certificate that a new connection gets, as PEM."""
        with self.web().connection() as connection:
            connection.connect()
            assert isinstance(connection.sock, ssl.SSLSocket)
            found = connection.sock.getpeercert(binary_form=True)
        assert found is not None
        return ssl.DER_cert_to_PEM_cert(found).encode()


@pytest.fixture(scope="module")
def mutual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mutual]:
    mutual = Mutual(tmp_path_factory.mktemp("mutual"))
    yield mutual
    assert mutual.server.end() == 0
    for sign in ("Traceback", "PRIVATE KEY", "never retrieved"):
        assert sign not in mutual.server.log


def test_a_certificate_of_a_client_is_its_credential(mutual: Mutual) -> None:
    assert mutual.server.http_url.startswith("https://")
    info = mutual.web().call("GetServerInfo", pb.GetServerInfoRequest())
    assert (info.status, info.json["caller"]["name"]) == (200, "machine")
    other = mutual.web(mutual.authority.issue("other"))
    assert other.call("GetServerInfo", pb.GetServerInfoRequest()).status == 401


@pytest.mark.parametrize("shown", ["nothing", "of another authority", "expired"])
def test_a_client_without_a_valid_certificate_does_not_get_in(
    mutual: Mutual, shown: str, tmp_path: Path
) -> None:
    pair = None
    if shown == "expired":
        pair = mutual.authority.issue("old", begins=-2 * HOUR, ends=-HOUR)
    elif shown == "of another authority":
        pair = Authority(tmp_path).issue("robot")
    with pytest.raises((OSError, http.client.HTTPException)):
        Web(mutual.server.http_url, mutual.context(pair)).get("/healthz")


@pytest.mark.parametrize(
    ("version", "accepted"),
    [(ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True)],
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_only_tls_1_2_and_newer_are_spoken(
    mutual: Mutual, version: ssl.TLSVersion, accepted: bool
) -> None:
    context = mutual.context(mutual.robot)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = version
    context.maximum_version = version
    web = Web(mutual.server.http_url, context)
    if accepted:
        assert web.get("/healthz").status == 200
    else:
        with pytest.raises(ssl.SSLError):
            web.get("/healthz")


def test_renewed_files_hold_for_new_connections(mutual: Mutual) -> None:
    with mutual.web().connection() as connection:
        connection.request("GET", "/healthz")
        connection.getresponse().read()
        fresh = mutual.authority.server("fresh")
        copy_over(fresh, mutual.pair)
        wait_for(lambda: mutual.seen() == fresh.cert)
        connection.request("GET", "/healthz")  # the connection of before continues
        assert connection.getresponse().status == 200


def test_new_authorities_of_clients_hold_for_new_connections(mutual: Mutual) -> None:
    other = Authority(mutual.client_ca.parent / "next", "Next authority")
    guest = other.issue("robot")

    def gets_in() -> bool:
        try:
            return mutual.web(guest).get("/healthz").status == 200
        except OSError:
            return False

    assert not gets_in()
    mutual.client_ca.write_bytes(mutual.authority.ca + other.ca)
    wait_for(gets_in)
    mutual.client_ca.write_bytes(mutual.authority.ca)
    wait_for(lambda: not gets_in())
