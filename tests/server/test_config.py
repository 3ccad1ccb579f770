from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from treadle.server.cli import build_parser, field_docs, main, read_config
from treadle.server.config import (
    ServerConfig,
    _cgroup_quota,
    available_cpus,
    available_memory,
)
from treadle.server.healthcheck import reachable

NAMES = [field.name for field in dataclasses.fields(ServerConfig)]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "treadle.server", *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_every_setting_has_help_a_flag_and_a_variable() -> None:
    assert list(field_docs(ServerConfig)) == NAMES
    text = " ".join(build_parser().format_help().split())
    for name in NAMES:
        assert "--" + name.replace("_", "-") in text
        assert f"TREADLE_{name.upper()}, default:" in text


def test_a_flag_wins_over_its_variable_and_that_over_the_default() -> None:
    environment = {"TREADLE_THREADS": "3", "TREADLE_GRACE_S": "1.5", "TREADLE_DATA_DIR": ""}
    config = read_config({"threads": "5"}, environment)
    assert (config.threads, config.grace_s) == (5, 1.5)
    assert config.data_dir == ServerConfig().data_dir


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("threads", "0", "threads must be 1 or more, not 0"),
        ("threads", "two", "TREADLE_THREADS must be a whole number, not 'two'"),
        ("grace_s", "nan", "grace_s must be 0 or more, not nan"),
        ("max_message_bytes", "4294967296", "max_message_bytes must be 65536 to 2147483647"),
        ("address", "50051", "address must be HOST:PORT"),
        ("address", "localhost:http", "address must be HOST:PORT"),
        ("log_level", "loud", "log_level must be debug"),
    ],
)
def test_wrong_settings_are_named(name: str, text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        read_config({}, {f"TREADLE_{name.upper()}": text})


def test_a_wrong_flag_ends_with_2_and_one_clear_line() -> None:
    done = run("--threads", "0")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("error: threads must be 1 or more, not 0")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_cpu_quotas_are_read(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert _cgroup_quota(tmp_path) == quota
    assert available_cpus() >= 1


@pytest.mark.parametrize(
    ("files", "memory"),
    [
        ({"memory.max": "1000\n", "meminfo": "MemTotal: 9 kB\nMemAvailable: 3 kB\n"}, 1000),
        ({"memory.max": "9000\n", "meminfo": "MemTotal: 9 kB\nMemAvailable: 3 kB\n"}, 3072),
        ({"memory.max": "max\n", "meminfo": "MemAvailable: 3 kB\n"}, 3072),
        ({"memory/memory.limit_in_bytes": "1000\n"}, 1000),
        ({"meminfo": "MemTotal: 9 kB\n"}, None),
        ({}, None),
    ],
)
def test_memory_limits_are_read(tmp_path: Path, files: dict[str, str], memory: int | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_memory(tmp_path, tmp_path / "meminfo") == memory


def test_runs_share_four_fifths_of_the_memory_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("treadle.server.config.available_memory", lambda: 1000)
    assert ServerConfig(training_slots=2).training_bytes() == 400
    assert ServerConfig(training_slots=2, max_training_bytes=900).training_bytes() == 900
    monkeypatch.setattr("treadle.server.config.available_memory", lambda: None)
    assert ServerConfig().training_bytes() is None


@pytest.mark.parametrize("flag", ["--warm", "--threads=1"])
def test_no_place_for_kernels_is_said(flag: str, tmp_path: Path) -> None:
    # As in a container whose root is read-only and that has no /tmp.
    code = (
        "import sys, tempfile; from treadle.server.cli import main\n"
        "def refuse(*_, **__): raise FileNotFoundError(2, 'No usable temporary directory found')\n"
        "tempfile.mkdtemp = refuse\n"
        f"sys.exit(main(['--data-dir', {str(tmp_path / 'data')!r}, {flag!r}]))"
    )
    environment = {"NUMBA_CACHE_DIR": "/proc/none"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("treadle-server: compiled kernels have no place:")
    assert "--tmpfs /tmp" in line


def test_version() -> None:
    assert run("--version").stdout.startswith("treadle-server ")


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("0.0.0.0:1", "127.0.0.1:1"),
        ("[::]:1", "[::1]:1"),
        ("10.0.0.1:1", "10.0.0.1:1"),
    ],
)
def test_health_is_asked_where_the_server_can_be_reached(address: str, target: str) -> None:
    assert reachable(address) == target


def test_the_health_check_of_no_server_ends_with_1() -> None:
    done = run("--check-health", "127.0.0.1:1")
    assert done.returncode == 1
    assert "UNAVAILABLE" in done.stderr


def test_the_health_check_does_not_import_numpy_or_numba() -> None:
    code = (
        "import sys; from treadle.server.cli import main\n"
        "main(['--check-health', '127.0.0.1:1'])\n"
        "print(sorted({'numpy', 'numba', 'llvmlite', 'safetensors'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "[]\n"


def test_a_bare_install_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "grpc_health.v1", None)
    monkeypatch.setitem(sys.modules, "grpc_health", None)
    monkeypatch.delitem(sys.modules, "treadle.server.healthcheck", raising=False)
    assert main(["--check-health", "127.0.0.1:1"]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("treadle-server: grpc_health")
    assert "pip install '.[server]'" in printed
    assert printed.count("\n") == 1
