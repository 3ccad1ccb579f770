"""Settings of the server: flags, environment variables, their help and their ranges."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from treadle.server.cli import build_parser, field_docs, main, read_config
from treadle.server.config import (
    MalformedSettingError,
    ServerConfig,
    _cgroup_quota,
    available_cpus,
    available_memory,
    default_data_dir,
    range_of,
)
from treadle.v1 import sequence_pb2 as pb

NAMES = [field.name for field in dataclasses.fields(ServerConfig)]
NUMBERS = [field for field in dataclasses.fields(ServerConfig) if field.metadata]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "treadle.server", *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_every_setting_has_help() -> None:
    assert list(field_docs(ServerConfig)) == NAMES


@pytest.mark.parametrize("field", dataclasses.fields(ServerConfig), ids=lambda field: field.name)
def test_the_help_says_what_a_flag_does_its_range_and_its_default(
    field: dataclasses.Field[object],
) -> None:
    flag = "--" + field.name.replace("_", "-")
    (action,) = [item for item in build_parser()._actions if flag in item.option_strings]
    assert action.help is not None
    assert action.default is None, "the default comes from ServerConfig alone"
    text, _, facts = action.help.replace("%%", "%").rpartition(" [")
    assert text.replace("-", "") == re.sub("[-_]", "", field_docs(ServerConfig)[field.name]) or (
        "max_new_tokens" in text  # a field of a request
    )
    assert not any(re.search(rf"\b{name}\b", text) for name in NAMES if "_" in name)
    assert text.endswith(".")
    variable, *limits, default = facts.removesuffix("]").split(", ")
    assert variable == f"TREADLE_{field.name.upper()}"
    assert limits == ([f"range: {range_of(field)}"] if field.metadata else [])
    shown = default.removeprefix("default: ").replace("none", "")
    assert shown == str(getattr(ServerConfig(), field.name))
    assert read_config({field.name: shown or "x"}, {}) is not None


@pytest.mark.parametrize("field", NUMBERS, ids=lambda field: field.name)
def test_the_ends_of_a_range_are_allowed(field: dataclasses.Field[object]) -> None:
    least = field.metadata["least"]
    most = field.metadata["most"]
    assert range_of(field) in (f"{least} to {most}", f"{least} or more")
    for value in (least, most):
        assert getattr(ServerConfig(**{field.name: value}), field.name) == value


def test_a_flag_wins_over_its_variable_and_that_over_the_default() -> None:
    environment = {"TREADLE_THREADS": "3", "TREADLE_GRACE_S": "1.5"}
    config = read_config({"threads": "5"}, environment)
    assert (config.threads, config.grace_s) == (5, 1.5)
    assert config.data_dir == ServerConfig().data_dir


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", ["", " ", "\t\n"])
def test_an_empty_setting_is_not_the_default(name: str, text: str) -> None:
    flag = "--" + name.replace("_", "-")
    variable = f"TREADLE_{name.upper()}"
    with pytest.raises(ValueError, match=f"^{flag} is empty"):
        read_config({name: text}, {})
    with pytest.raises(ValueError, match=f"^{variable} is empty"):
        read_config({}, {variable: text})


@pytest.mark.parametrize("field", NUMBERS, ids=lambda field: field.name)
@pytest.mark.parametrize("text", ["-1", "nan", "inf", "1e400", "9" * 30, "9" * 5000, "x", "1 2"])
def test_a_number_out_of_range_is_named(field: dataclasses.Field[object], text: str) -> None:
    variable = f"TREADLE_{field.name.upper()}"
    with pytest.raises(ValueError, match=f"^{variable} must be ") as caught:
        read_config({}, {variable: text})
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("field", NUMBERS, ids=lambda field: field.name)
def test_0_is_taken_or_refused_and_never_the_default(field: dataclasses.Field[object]) -> None:
    if field.metadata["least"] > 0:
        with pytest.raises(ValueError, match="must be "):
            read_config({field.name: "0"}, {})
    else:
        assert getattr(read_config({field.name: "0"}, {}), field.name) == 0


def test_what_the_contract_counts_in_32_bits_fits() -> None:
    names = {field.name for field in pb.GetServerInfoResponse.DESCRIPTOR.fields}
    for field in NUMBERS:
        if field.name in names:
            pb.GetServerInfoResponse(**{field.name: field.metadata["most"]})


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("threads", "0", "TREADLE_THREADS must be 1 to 1024, not 0"),
        ("threads", "two", "TREADLE_THREADS must be a whole number, not 'two'"),
        ("grace_s", "nan", "TREADLE_GRACE_S must be 0 to 1000000000, not nan"),
        ("max_message_bytes", "4294967296", "TREADLE_MAX_MESSAGE_BYTES must be 65536 to 2147483"),
        ("address", "50051", "TREADLE_ADDRESS '50051' lacks a port"),
        ("address", "unix:50077", "TREADLE_ADDRESS 'unix:50077' names a socket without its abs"),
        ("log_level", "loud", "TREADLE_LOG_LEVEL must be debug"),
        ("log_format", "xml", "TREADLE_LOG_FORMAT must be text or json, not 'xml'"),
        (
            "inference_precision",
            "bf16",
            "TREADLE_INFERENCE_PRECISION must be fp32 or int8, not 'bf16'",
        ),
        ("metrics_access", "all", "TREADLE_METRICS_ACCESS must be admin or public, not 'all'"),
        ("data_dir", "a\0b", "TREADLE_DATA_DIR has a NUL"),
    ],
)
def test_wrong_settings_are_named(name: str, text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=f"^{complaint}"):
        read_config({}, {f"TREADLE_{name.upper()}": text})


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--threads", "0"], "--threads must be 1 to 1024, not 0"),
        (["--data-dir", ""], "--data-dir is empty; give a value, or leave it out for the default"),
        (["--thread", "1"], "unrecognized arguments: --thread 1"),
        (["--repair"], "--repair goes with --fsck"),
        (
            ["--fsck", "--database-url", "postgresql://ann:secret@db/x"],
            "--fsck checks a data directory, and with --database-url nothing that counts is there: "
            "check PostgreSQL with pg_amcheck, and restore a backup of it and of --blobs-url",
        ),
        (
            ["--database-ulr", "postgresql://ann:se@cret@db/x"],
            "unrecognized arguments: --database-ulr postgresql://ann:********@db/x",
        ),
        (["--check-health", ""], "--check-health is empty; give an address, or leave it out"),
    ],
)
def test_a_wrong_flag_ends_with_2_and_one_line(words: list[str], complaint: str) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert done.stderr == f"treadle-server: {complaint} (see `treadle-server --help`)\n"


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (
            {"database_url": "postgresql://ann:secret@db/x"},
            "--database-url comes without --blobs-url: servers share both or neither, so give "
            "--blobs-url too",
        ),
        (
            {"blobs_url": "s3://bucket/x"},
            "--blobs-url comes without --database-url: servers share both or neither, so give "
            "--database-url too",
        ),
        (
            {"database_url": "mysql://ann:secret@db/x", "blobs_url": "s3://bucket/x"},
            "--database-url must begin with postgresql://",
        ),
    ],
)
def test_shared_storage_is_a_database_and_a_store(settings: dict[str, Any], complaint: str) -> None:
    config = ServerConfig(**settings)
    with pytest.raises(MalformedSettingError, match=f"^{complaint}$"):
        config.shares_storage()
    assert "secret" not in repr(config)
    assert not ServerConfig().shares_storage()
    assert ServerConfig(database_url="postgresql:///x", blobs_url="s3://x").shares_storage()


@pytest.mark.parametrize(
    ("variable", "text", "complaint"),
    [
        ("NUMBA_CPU_FEATURES", "avx2", "NUMBA_CPU_FEATURES must be of the form +avx2,-avx512f"),
        ("TREADLE_CPU_TARGET", "", "TREADLE_CPU_TARGET must be host or portable, not ''"),
        ("TREADLE_DATA_DIR", "", "TREADLE_DATA_DIR is empty; give a value, or leave it out for"),
    ],
)
def test_a_wrong_variable_ends_with_2_and_one_line(
    variable: str, text: str, complaint: str
) -> None:
    done = run("--warm", **{variable: text})
    assert done.returncode == 2
    assert done.stderr.startswith(f"treadle-server: {complaint}")
    assert done.stderr.count("\n") == 1


def test_a_relative_xdg_folder_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/user")
    for base in ("", "data", "./x"):
        monkeypatch.setenv("XDG_DATA_HOME", base)
        assert default_data_dir() == Path("/home/user/.local/share/treadle")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert default_data_dir() == Path("/data/treadle")


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
    monkeypatch.setattr("treadle.server.config.available_memory", lambda: 1200)
    assert ServerConfig().memory_budget_bytes() == 400
    assert ServerConfig(training_slots=2).training_bytes() == 320  # 80 % of the other 800
    assert ServerConfig(memory_budget=200).memory_budget_bytes() == 200
    assert ServerConfig(memory_budget=200).training_bytes() == 800
    assert ServerConfig(memory_budget=5000).training_bytes() == 192  # 80 % of a fifth
    assert ServerConfig(training_slots=2, max_training_bytes=900).training_bytes() == 900
    assert ServerConfig(training_slots=0).training_bytes() is None  # jobs run on other servers
    assert ServerConfig(training_slots=0, max_training_bytes=900).training_bytes() == 900
    monkeypatch.setattr("treadle.server.config.available_memory", lambda: None)
    assert ServerConfig().memory_budget_bytes() == 1 << 30
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
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("treadle-server: compiled kernels cannot be stored:")
    assert "--tmpfs /tmp" in line


def test_version() -> None:
    assert run("--version").stdout.startswith("treadle-server ")


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("127.0.0.1:1", "nothing listens there"),
        ("unix:/nowhere/socket", "there is no such socket"),
    ],
)
def test_the_health_check_of_no_server_ends_with_1(address: str, why: str) -> None:
    done = run("--check-health", address)
    assert done.returncode == 1
    assert done.stderr == f"{address}: UNAVAILABLE: {why}\n"


def test_the_health_check_does_not_import_numpy_or_numba() -> None:
    code = (
        "import sys; from treadle.server.cli import main\n"
        "main(['--check-health', '127.0.0.1:1'])\n"
        "print(sorted({'numpy', 'numba', 'llvmlite', 'safetensors'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
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
