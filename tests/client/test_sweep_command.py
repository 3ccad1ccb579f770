"""`treadle sweep` as a program against a real server: killed, interrupted, continued, cancelled."""

from __future__ import annotations

import hashlib
import io
import re
import signal
import subprocess
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from treadle.client import CancelledError, Client
from treadle.v1 import sequence_pb2 as v1

from .shell import PATIENCE_S, command, complaint, environment, objects, run

NAMES = Path(__file__).parents[2] / "examples" / "data" / "names.txt"

METHOD = "tpe" if find_spec("optuna") else "random"
TRIALS = 4
SETTINGS = ["learning_rate", "hidden_size"]


def written(folder: Path, name: str, max_steps: int = 20) -> str:
    """Writes the file of a small sweep."""
    (folder / "names.txt").write_text("\n".join(NAMES.read_text().split()[:150]))
    path = folder / f"{name}.toml"
    path.write_text(
        f"""
        [sweep]
        name = "{name}"
        model = "model-{name}"
        method = "{METHOD}"
        {"startup_trials = 2" if METHOD == "tpe" else ""}
        trials = {TRIALS}
        parallel = 2
        prune_after_trials = 2
        alias = "best"
        [files]
        train = "names.txt"
        [train]
        layout = "lines"
        sample_tokens = 0
        window = 8
        max_steps = {max_steps}
        [search]
        learning_rate = {{ min = 0.0001, max = 0.1, scale = "log" }}
        hidden_size = {{ min = 4, max = 16, step = 4 }}
        """
    )
    return str(path)


def jobs_of(address: str, name: str) -> dict[str, str]:
    """Returns the ids of a sweep's jobs by the number of the trial."""
    with Client(address) as client:
        found = [(job.spec.tags["trial"], job.id) for job in client.jobs(tags={"sweep": name})]
    assert len(found) == len({trial for trial, _ in found})
    return dict(found)


def weights(address: str, results: list[dict[str, Any]], name: str) -> dict[int, str]:
    """Returns the hashes of the weights of the trials that came to their end."""
    found = {}
    with Client(address) as client:
        for each in results:
            if each["state"] == "succeeded":
                file = io.BytesIO()
                client.export_model(f"model-{name}", file, version=each["version"])
                data = file.getvalue()
                # A file of safetensors begins with its head, which holds times of the run.
                head = int.from_bytes(data[:8], "little")
                found[each["trial"]] = hashlib.sha256(data[8 + head :]).hexdigest()
    return found


def results_of(address: str, spec: str, out: Path) -> list[dict[str, Any]]:
    done = run(address, "sweep", spec, "--json", "--out", str(out))
    assert (done.returncode, done.stderr) == (0, b"")
    return [each for each in objects(done.stdout.decode()) if each["event"] == "result"]


@pytest.fixture(scope="module")
def whole(real_server: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str]]:
    """The file of a sweep that nobody disturbed, and what the command printed."""
    spec = written(tmp_path_factory.mktemp("whole"), "whole")
    done = run(real_server, "sweep", spec)
    assert (done.returncode, done.stderr) == (0, b"")
    return spec, done.stdout.decode().splitlines()


def test_a_killed_sweep_continues_to_the_bytes_of_an_undisturbed_one(
    real_server: str, tmp_path: Path, whole: tuple[str, list[str]]
) -> None:
    undisturbed = results_of(real_server, whole[0], tmp_path / "whole.csv")
    spec = written(tmp_path, "killed")
    for lines in (1, 2, 4):
        with subprocess.Popen(
            command(real_server, "sweep", spec), stdout=subprocess.PIPE, env=environment()
        ) as process:
            assert process.stdout is not None
            for _ in range(lines):
                process.stdout.readline()
            process.kill()
    again = results_of(real_server, spec, tmp_path / "killed.csv")
    assert (tmp_path / "killed.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert [each["trial"] for each in again] == [each["trial"] for each in undisturbed]
    assert len(jobs_of(real_server, "killed")) == TRIALS
    hashes = weights(real_server, undisturbed, "whole")
    assert weights(real_server, again, "killed") == hashes
    assert len(hashes) >= 2
    with Client(real_server) as client:
        assert client.get_model("model-killed@best").model.version == again[0]["version"]
    Path(spec).write_text(Path(spec).read_text().replace("window = 8", "window = 9"))
    assert complaint(run(real_server, "sweep", spec), 2) == (
        f"treadle: sweep 'killed' has {TRIALS} jobs of another file: [train] differs; take another "
        "name, or restore the file to continue"
    )


def test_lines_and_the_table(real_server: str, whole: tuple[str, list[str]]) -> None:
    spec, lines = whole
    assert re.fullmatch(r"trial 1 queued: learning_rate=\S+ hidden_size=\d+", lines[0])
    ended = [line for line in lines if re.match(r"trial \d (succeeded|stopped)", line)]
    assert len(ended) == TRIALS
    assert re.fullmatch(r"trial \d succeeded: best_valid_loss \d\.\d{4}", ended[0])
    place = next(place for place, line in enumerate(lines) if line.startswith("sweep whole: "))
    assert re.match(
        rf"sweep whole: {TRIALS} of {TRIALS} trials have ended.*, best: trial \d with \d",
        lines[place],
    )
    head, *rows = (line.split() for line in lines[place + 1 : -1])
    assert head == ["rank", "trial", "loss", "step", "version", *SETTINGS, "state"]
    assert [row[0] for row in rows] == [str(rank) for rank in range(1, TRIALS + 1)]
    assert lines[-1].startswith(f"model-whole@best is version {rows[0][4]}, of trial {rows[0][1]}")
    quiet = run(real_server, "sweep", spec, "--quiet").stdout.decode().splitlines()
    assert quiet == lines[place:]


def test_ctrl_c_leaves_the_jobs_and_cancel_ends_them(real_server: str, tmp_path: Path) -> None:
    spec = written(tmp_path, "long", max_steps=1_000_000)
    with subprocess.Popen(
        command(real_server, "sweep", spec),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"trial 1 queued: learning_rate=")
        assert process.stdout.readline().startswith(b"trial 2 queued: learning_rate=")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert said.decode() == (
        "treadle: interrupted; the jobs of sweep 'long' continue at the server: "
        f"`treadle sweep {spec}` continues the sweep, `treadle sweep {spec} --cancel` stops them\n"
    )
    assert {*jobs_of(real_server, "long")} == {"1", "2"}
    done = run(real_server, "sweep", spec, "--cancel")
    assert done.stdout.decode() == (
        "cancelled 2 jobs of sweep 'long' (trial 1, 2); "
        f"`treadle sweep {spec}` continues with the trials that have no job yet\n"
    )
    with Client(real_server) as client:
        for job in jobs_of(real_server, "long").values():
            with client.watch(job) as watched, suppress(CancelledError):
                watched.result()
            assert client.get_job(job).state == v1.JOB_STATE_CANCELLED
    done = run(real_server, "sweep", spec, "--cancel")
    assert done.stdout == b"sweep 'long' has no job that could be cancelled\n"


def test_a_sweep_of_refused_trials_has_no_model(real_server: str, tmp_path: Path) -> None:
    spec = written(tmp_path, "refused")
    text = Path(spec).read_text().replace("[search]", "embedding_size = 5000\n[search]")
    Path(spec).write_text(text)
    sentence = complaint(run(real_server, "sweep", spec, "--quiet"), 1)
    assert "embedding_size must be" in sentence
    assert "--embedding-size" not in sentence


def test_the_connection_has_flags_and_settings_have_keys(real_server: str, tmp_path: Path) -> None:
    nowhere = ("sweep", written(tmp_path, "nowhere"), "--reconnect", "0")
    said = complaint(run("127.0.0.1:1", *nowhere), 3)
    assert "nothing listens at 127.0.0.1:1" in said
    assert "name another with --server" in said
    spec = Path(written(tmp_path, "keys"))
    spec.write_text(spec.read_text().replace("window = 8", "window = 100000000"))
    said = complaint(run(real_server, "sweep", str(spec), "--quiet"), 1)
    assert said.startswith("treadle: window must be ")
