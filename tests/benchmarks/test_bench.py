"""The command, its checks, and runs of it."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from treadle.benchmarks import checks, cli
from treadle.benchmarks.checks import CheckError
from treadle.benchmarks.peak import flops_per_token, multiply_adds
from treadle.benchmarks.rivals import Workers, earlier
from treadle.benchmarks.settings import SECTIONS, Case, Settings, train_cases
from treadle.kernels import reference


def test_flags() -> None:
    flags = cli.build_parser().parse_args(["--only", "train,decode", "--threads", "3"])
    expected = Settings(threads=3, sections=("train", "decode"))
    assert cli.read_settings(flags) == expected


def test_quick_changes_defaults_only() -> None:
    flags = cli.build_parser().parse_args(["--quick", "--rounds", "9"])
    settings = cli.read_settings(flags)
    assert (settings.rounds, settings.seconds, settings.quick) == (9, 0.1, True)
    assert len(train_cases(settings)) < len(train_cases(Settings()))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--only", "trian"],
        ["--only", ","],
        ["--threads", "0"],
        ["--seconds", "x"],
        ["--rounds", "-1"],
    ],
)
def test_wrong_flags_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        cli.main(arguments)
    assert raised.value.code == 2


def test_an_earlier_treadle_is_a_rival_where_it_is_given() -> None:
    flags = cli.build_parser().parse_args(["--earlier", sys.executable])
    settings = cli.read_settings(flags)
    case = train_cases(settings)[0]
    (entrant,) = earlier(Workers(settings), case)["earlier"]
    assert entrant.worker.name == "treadle before"
    assert earlier(Workers(Settings()), case) == {}


def test_help_names_every_section() -> None:
    text = cli.build_parser().format_help()
    assert all(f"\n  {section} " in text for section in SECTIONS)


def test_flops_of_a_step() -> None:
    case = Case("train", "lstm", 2, rows=3, steps=5, vocabulary=7, embedding=4)
    G = 8
    N = 15
    recurrence = 2 * G * (N + (N - 3) + N)
    assert flops_per_token(case) == 2 * (recurrence + 3 * N * 2 * 7 + 3 * 7 * 4 * G) / N


def test_full_settings_have_every_case() -> None:
    labels = [case.label for case in train_cases(Settings())]
    sizes = [f"{cell} {size}" for cell in ("RNN", "GRU", "LSTM") for size in (64, 128, 256, 512)]
    assert labels == [*sizes, "LSTM 2x256"]


def test_digests_that_depend_on_threads_fail() -> None:
    with pytest.raises(CheckError, match=r"lstm.*threads"):
        checks.compare_digests({"lstm": {"1": "a", "2": "b"}}, {})


def test_digests_of_another_processor_must_be_the_same() -> None:
    ours = {"lstm": {"1": "a", "2": "a"}}
    checks.compare_digests(ours, {"lstm": {"1": "a"}})
    with pytest.raises(CheckError, match="differ between"):
        checks.compare_digests(ours, {"lstm": {"1": "b"}})


@pytest.mark.parametrize("cell", checks.CELLS)
def test_gradients_of_the_reference_pass(cell: str) -> None:
    assert checks.check_gradients(cell) < checks.GRADIENT_TOLERANCE


def test_a_wrong_gradient_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    backward = reference.output_backward
    monkeypatch.setattr(
        "treadle.kernels.reference.network.output_backward",
        lambda *a: tuple(1.01 * x for x in backward(*a)),
    )
    assert checks.check_gradients("rnn") > 1e-3


def test_central_differences_restore_what_they_change() -> None:
    array = np.array([1.0, -2.0])
    gradient = checks.central_difference(lambda: float((array**3).sum()), array)
    assert gradient == pytest.approx([3.0, 12.0], rel=1e-8)
    assert array.tolist() == [1.0, -2.0]


@pytest.mark.jit
def test_multiply_adds_count_what_they_run() -> None:
    assert multiply_adds(20) == 2 * multiply_adds(10) > 0


@pytest.mark.jit
def test_a_failed_check_is_one_sentence_and_exit_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checks, "KERNEL_TOLERANCE", 0.0)
    assert cli.main(["--quick", "--only", "check"]) == 1
    out, errors = capsys.readouterr()
    assert "Checks passed" not in out
    assert errors.splitlines()[-1].startswith("treadle-bench: the compiled loss and gradients of")


@pytest.mark.jit
def test_checks_pass_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--quick", "--only", "check"]) == 0
    assert "Checks passed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--plot", "x.png"], "must end in .svg, not 'x.png'"),
        (["--rounds", "0"], "'0' must be a whole number, 1 or more"),
        (["--earlier", "/no/python"], "'/no/python' is no program: give the path of a python"),
        (["--seconds", "61"], "'61' must be above 0 and at most 60 seconds"),
    ],
)
def test_a_wrong_flag_is_refused(
    capsys: pytest.CaptureFixture[str], words: list[str], fault: str
) -> None:
    with pytest.raises(SystemExit):
        cli.main(words)
    assert fault in capsys.readouterr().err


@pytest.mark.jit
def test_a_run_prints_one_json_object(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["--quick", "--rounds", "1", "--seconds", "0.01", "--threads", "1", "--json"]
    plot = tmp_path / "ratios.svg"
    assert cli.main([*arguments, "--only", "train,peak,sessions", "--plot", str(plot)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {"machine", "settings", "versions", "losses", "summary", *SECTIONS}
    assert report["decode"] is None
    for row in report["train"]:
        assert row["ours"]["median"] > 0
        assert set(row["ratios"]) == {"pytorch"}
    assert report["peak"][0]["fraction"] > 0
    assert report["summary"]["decode_64_vs_1_min"] > 0
    assert report["summary"]["decode_vs_jax_min"] is None
    assert plot.read_text("utf-8").startswith("<svg")
