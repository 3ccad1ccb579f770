"""`treadle-train`: its file, its exit codes, and that runs continue, on any number of ranks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mpirun import ENVIRONMENT, MPIRUN, needs_mpi

from treadle.model import Model, Progress
from treadle.model.errors import PackageError
from treadle.model.training.ranks.join import join
from treadle.server.messages.requests import train_config
from treadle.server.resources.process_status import with_descendants
from treadle.server.standalone.held_folder import held
from treadle.server.standalone.main import main
from treadle.server.standalone.run import Run, RunFiles
from treadle.server.standalone.spec_file import SpecFileError, read_spec_file

from .harness import PATIENCE_S, TEXT, is_running, wait_for

COMMAND = [sys.executable, "-P", "-m", "treadle.server.standalone.command"]

SPEC = """
seed = 7
[files]
train = "corpus.txt"
[data]
batch_size = 40
window = 8
[network]
cell = "gru"
hidden_size = 12
[limits]
max_steps = 500
[report]
progress_interval_s = 0.1
validation_interval_steps = 300
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    (tmp_path / "corpus.txt").write_bytes(TEXT * 20)
    path = tmp_path / "spec.toml"
    path.write_text(SPEC)
    return path


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def weights(path: Path) -> bytes:
    return Model.load(path).parameters.flat.tobytes()


@contextmanager
def started(spec: Path, ranks: int, output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Runs the command, and kills it in the end."""
    words = [*COMMAND, str(spec), "--output", str(output), "--checkpoint-interval-s", "0.05"]
    words += ["--threads", "1"]
    prefix = [str(MPIRUN), "-n", str(ranks)] if ranks > 1 else []
    process = subprocess.Popen(
        [*prefix, *words],
        env=os.environ | ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        family = with_descendants(process.pid) if process.poll() is None else []
        for pid in family:
            os.kill(pid, signal.SIGKILL)
        process.wait(PATIENCE_S)


def finish(spec: Path, ranks: int, output: Path) -> None:
    """Runs the command to its end."""
    with started(spec, ranks, output) as process:
        assert process.wait(PATIENCE_S) == 0
    assert not output.with_name(f"{output.name}.checkpoint").exists()


@contextmanager
def at_default_signals() -> Iterator[None]:
    """Restores the handlers that the command replaces in its process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def checkpoint_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.checkpoint") / "state.safetensors"


@pytest.mark.jit
def test_an_interrupted_run_continues_to_the_same_bits(spec: Path, tmp_path: Path) -> None:
    finish(spec, 1, tmp_path / "whole")
    output = tmp_path / "model"
    with started(spec, 1, output) as process:
        wait_for(checkpoint_of(output).exists)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130
    assert checkpoint_of(output).exists()
    assert not output.exists()
    finish(spec, 1, output)
    assert weights(output) == weights(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        (("max_steps = 500", "max_steps = 501"), "limits.max_steps"),
        (("seed = 7", "seed = 8"), "seed"),
        (("corpus.txt", "other.txt"), "corpus"),
    ],
)
def test_another_run_does_not_continue_a_checkpoint(
    change: tuple[str, str],
    differs: str,
    spec: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its settings would be those of the checkpoint, whatever the file says."""
    monkeypatch.setattr(Run, "train", lambda run, on_progress: run._write())
    folder = tmp_path / "state"
    words = [str(spec), "--output", str(tmp_path / "model"), "--checkpoint-dir", str(folder)]
    words += ["--threads", "1"]
    with at_default_signals(), pytest.raises(IndexError):  # "interrupted", without a signal
        main(words)
    assert (folder / "state.safetensors").exists()
    (tmp_path / "other.txt").write_bytes(TEXT * 21)
    written(spec, SPEC.replace(*change))
    capsys.readouterr()
    with at_default_signals():
        assert main(words) == 2
    message = capsys.readouterr().err
    assert f"the checkpoint in {folder} is of another run (see {differs})" in message
    assert "delete the folder to start over" in message
    written(spec, SPEC)
    with at_default_signals(), pytest.raises(IndexError):
        main(words)


@pytest.mark.jit
def test_a_report_that_fails_ends_the_run_at_once(
    spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when Python collects it: the other ranks would wait for what comes meanwhile."""
    made = read_spec_file(spec)
    made.spec.model = "m"
    (tmp_path / "state").mkdir()
    files = RunFiles(made.files, None, tmp_path / "model", tmp_path / "state")
    run = Run(train_config(made.spec), files, 1, 10.0, None)
    begin = run._trainer.run
    kept: list[Iterator[Progress]] = []

    def keep(**options: Any) -> Iterator[Progress]:
        kept.append(begin(**options))
        return kept[0]

    def fail(progress: Progress) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(run._trainer, "run", keep)
    with pytest.raises(BrokenPipeError):
        run.train(fail)
    assert run._trainer._engine is None


@pytest.mark.jit
@needs_mpi
def test_a_killed_rank_ends_the_run_which_continues_on_other_ranks(
    spec: Path, tmp_path: Path
) -> None:
    finish(spec, 1, tmp_path / "whole")
    output = tmp_path / "model"
    with started(spec, 3, output) as process:
        wait_for(checkpoint_of(output).exists)
        family = with_descendants(process.pid)
        os.kill(family[-1], signal.SIGKILL)
        assert process.wait(PATIENCE_S) != 0
    wait_for(lambda: not any(map(is_running, family)))
    assert not output.exists()
    finish(spec, 2, output)
    assert weights(output) == weights(tmp_path / "whole")


@pytest.mark.jit
def test_auto_and_json(spec: Path, tmp_path: Path) -> None:
    text = '{"files": {"train": ["corpus.txt"]}, "preset": "auto", "limits": {"max_time_s": 0.5}}'
    path = written(tmp_path / "auto.json", text)
    done = subprocess.run(
        [*COMMAND, str(path), "--output", str(tmp_path / "auto"), "--json"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert '"event":"started"' in lines[0]
    assert lines[-1] == f'{{"event":"saved","output":"{tmp_path / "auto"}"}}'


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("x = 1", "[files] is missing"),
        ("[files]\ntrain = 'none.txt'", "files.train names"),
        ("[files]\nvalid = 'corpus.txt'", "files.train is missing"),
        ("[files]\nother = 'corpus.txt'", "files.other is no role"),
        ("[files]\ntrain = 5", "files.train must be a path"),
        ("hiden_size = 3\n[files]\ntrain = 'corpus.txt'", "hiden_size is no field"),
        ("[files]\ntrain = 'corpus.txt'\n[network]\nhiden_size = 3", "network.hidden_size?"),
        ("[files]\ntrain = 'corpus.txt'\n[network]\ncell = 'x'", "network.cell must be rnn"),
        ("[files]\ntrain = 'corpus.txt'\n[network]\nlayers = 1.5", "a whole number"),
        ("[files]\ntrain = 'corpus.txt'\n[network]\nlayers = true", "a whole number"),
        (
            "[files]\ntrain = 'corpus.txt'\n[network]\nlayers = -1",
            "network.layers must be a whole number from 0 to 4,294,967,295, not -1",
        ),
        ("tags.a = 3\n[files]\ntrain = 'corpus.txt'", "tags.a must be a text, not 3"),
        (
            "[files]\ntrain = 'corpus.txt'\n[network]\nsoftmax_clusters = [5, 'a']",
            "network.softmax_clusters[1] must be a whole number, not 'a'",
        ),
        ("nodes = 2\n[files]\ntrain = 'corpus.txt'", "nodes is for a server: leave it out, and"),
        ("init_from = 'none'\n[files]\ntrain = 'corpus.txt'", "none', which is no file"),
        ("network = 5\n[files]\ntrain = 'corpus.txt'", "network must be a table"),
        ("request_id = 'a'\n[files]\ntrain = 'corpus.txt'", "is for a server"),
        ("= 5", "is not TOML"),
    ],
)
def test_a_fault_of_the_file_is_named(
    text: str, fault: str, spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(spec, text)
    with pytest.raises(SpecFileError) as caught:
        read_spec_file(spec)
    assert fault in str(caught.value)
    assert main([str(spec), "--output", "model"]) == 2
    assert fault in capsys.readouterr().err


def test_a_setting_at_fault_is_named_as_in_the_file(
    spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(spec, SPEC.replace("hidden_size = 12", "hidden_size = 100000000"))
    assert main([str(spec), "--output", str(tmp_path / "model")]) == 2
    assert "network.hidden_size must be" in capsys.readouterr().err
    assert main([str(written(spec, SPEC))]) == 2
    assert "has no key `model`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "place", "fault"),
    [
        ("--output", "", "is a folder: name a file"),
        ("--output", "corpus.txt/model", "and it cannot be made ("),
        ("--checkpoint-dir", "corpus.txt", "name one for the checkpoint by --checkpoint-dir"),
    ],
)
def test_a_place_that_cannot_be_written_is_an_error_before_the_run(
    flag: str, place: str, fault: str, spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(spec), "--output", str(spec.parent / "model"), flag, str(spec.parent / place)]
    assert main(words) == 2
    assert fault in capsys.readouterr().err


def test_two_runs_do_not_share_a_checkpoint(
    spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each would replace that of the other."""
    folder = tmp_path / "made" / "state"
    words = [str(spec), "--output", str(tmp_path / "model"), "--checkpoint-dir", str(folder)]
    with held(folder):
        assert main(words) == 1
    assert f"another treadle-train uses {folder}" in capsys.readouterr().err
    with held(folder):
        assert not [*folder.iterdir()]


def test_a_damaged_first_model_is_named(
    spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path / "first", "damaged")
    written(spec, f'init_from = "first"\n{SPEC}')
    with at_default_signals():
        assert main([str(spec), "--output", str(tmp_path / "model")]) == 1
    assert f"init_from {tmp_path / 'first'} cannot be used: " in capsys.readouterr().err


def test_ctrl_c_during_the_imports_leaves_no_traceback() -> None:
    """The module that the program begins with imports nothing that takes long."""
    listed = "import sys; before = {*sys.modules}; import treadle.server.standalone.command; "
    listed += "print(*{*sys.modules} - before)"
    found = subprocess.run([sys.executable, "-P", "-c", listed], capture_output=True, check=True)
    loaded = found.stdout.decode().split()
    assert "treadle.server.standalone.command" in loaded
    assert not {"argparse", "dataclasses", "json", "pathlib", "treadle.server.config"} & {*loaded}


def test_mpirun_needs_mpi4py(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    assert join() is None
    monkeypatch.setenv("PMI_SIZE", "2")
    with pytest.raises(PackageError, match="its extra `mpi`"):
        join()
