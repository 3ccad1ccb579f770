"""Checks that `make audit` says what it knows: findings, none, and that it could not ask."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

AUDIT = Path(__file__).parent.parent / "requirements" / "audit.py"
RANGES = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "999.1"}]}]
FINDING = {"id": "OSV-2026-1", "summary": "A test's own finding.", "details": "None."}


class Advisories(BaseHTTPRequestHandler):
    """An advisory service with the interface of api.osv.dev."""

    vulnerable = ""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        found = asked["package"]["name"] == self.vulnerable
        finding = FINDING | {"affected": [{"package": asked["package"], "ranges": RANGES}]}
        body = json.dumps({"vulns": [finding]} if found else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Logs nothing."""


@pytest.fixture
def service() -> Iterator[str]:
    """The URL of a service that knows no vulnerability, unless the test sets one."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Advisories)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    Advisories.vulnerable = ""
    server.shutdown()
    server.server_close()
    thread.join()


def summary(packages: list[dict[str, object]]) -> int:
    """Returns the exit code for a report of pip-audit."""
    code: int = runpy.run_path(str(AUDIT))["summary"](packages)
    return code


def audit(url: str) -> tuple[int, str]:
    """Returns the exit code of an audit and what it prints."""
    command = [sys.executable, str(AUDIT), "--vulnerability-service", "osv", "--osv-url", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_a_lock_without_findings_passes(service: str) -> None:
    code, printed = audit(service)
    assert code == 0, printed
    assert "0 vulnerabilities known" in printed


@pytest.mark.parametrize("name", ["protobuf", "ray"])  # in both images, and in one
def test_a_finding_fails_and_is_named(service: str, name: str) -> None:
    Advisories.vulnerable = name
    code, printed = audit(service)
    assert code == 1
    assert "OSV-2026-1, repaired in 999.1" in printed
    assert "1 vulnerabilities known" in printed


def test_every_package_of_the_images_is_looked_up_once(service: str) -> None:
    locks = [(AUDIT.parent / name).read_text("utf-8") for name in ("image.lock", "ray.lock")]
    names = set(re.findall(r"^([\w.-]+)==", "".join(locks), re.MULTILINE))
    assert f"{len(names)} of {len(names)} packages looked up" in audit(service)[1]


def test_a_service_that_cannot_be_reached_is_no_success() -> None:
    code, printed = audit("http://127.0.0.1:9/")
    assert code == 2
    assert printed.startswith("Not audited: pip-audit could not ask the advisory service")


def test_packages_that_were_not_looked_up_are_no_success(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As where a package index answers in place of PyPI, which knows no advisories."""
    looked_up: dict[str, object] = {"name": "numpy", "version": "2.4.6", "vulns": []}
    assert summary([looked_up]) == 0
    assert summary([looked_up, {"name": "numba", "skip_reason": "not found"}]) == 2
    assert "Not audited: the advisory service does not know numba" in capsys.readouterr().out
    assert summary([]) == 2
