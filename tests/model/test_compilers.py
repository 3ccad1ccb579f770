"""Processes that compile: each task is run once, by any of them, and none outlives its owner."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from treadle.model.warmup import compilers, groups
from treadle.model.warmup.compilers import Compilers, useful_processes
from treadle.model.warmup.groups import KernelGroup

PROGRAM = """
import os, sys
from treadle.model.warmup import compilers, groups
folder = {folder!r}
def task(group, number):
    def run():
        with open(os.path.join(folder, f"{{group.name}}-{{number}}"), "a") as file:
            file.write(f"{{os.getpid()}}\\n")
        if group is groups.KernelGroup.DETAILS:
            raise ValueError("a task that fails")
        if group is groups.KernelGroup.{fatal}:
            os._exit(1)
    return run
for group, tasks in groups.TASKS.items():
    groups.TASKS[group] = tuple(task(group, number) for number in range(len(tasks)))
compilers.obey()
"""

PATIENCE_S = 60.0


@pytest.fixture
def done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the tasks leave a file each."""
    program = PROGRAM.format(folder=str(tmp_path), fatal="NOVELTY")
    monkeypatch.setattr(compilers, "_PROGRAM", program)
    return tmp_path


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def gone(process: int) -> bool:
    return not Path(f"/proc/{process}").exists()


def status(process: int) -> str:
    try:
        return Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return "Z (zombie)"


def test_every_task_is_run_once(done: Path) -> None:
    started = Compilers(2)
    for group in KernelGroup:
        started.wait(group)  # also where a task fails, or its process ends
        names = {path.name for path in done.iterdir()}
        assert {f"{group.name}-{number}" for number in range(len(groups.TASKS[group]))} <= names
    lines = [path.read_text().splitlines() for path in done.iterdir()]
    assert all(len(each) == 1 for each in lines)
    started.close()
    assert all(gone(int(process)) for (process,) in lines)


def test_processes_that_were_started_early_are_used_first(done: Path) -> None:
    compilers.start_early()
    early = {process.pid for process in compilers._waiting}
    assert len(early) == useful_processes()
    compilers.start_early()  # once is enough
    started = Compilers(useful_processes() + 1)
    assert not compilers._waiting
    assert early < {process.pid for process in started._processes}
    started.wait(KernelGroup.INFERENCE)
    started.close()
    assert all(gone(process) for process in early)


def test_processes_end_with_what_started_them(done: Path) -> None:
    started = Compilers(2)
    started.close()
    assert all(gone(process.pid) for process in started._processes)
    started.close()


def test_a_process_that_was_killed_gets_no_tasks(
    done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Compilers._start

    def start_and_kill(self: Compilers) -> None:
        start(self)
        if len(self._processes) == 1:
            self._processes[0].kill()
            self._processes[0].wait()

    monkeypatch.setattr(Compilers, "_start", start_and_kill)
    started = Compilers(2)
    other = started._processes[1].pid
    for group in KernelGroup:
        started.wait(group)
        for number in range(len(groups.TASKS[group])):
            assert (done / f"{group.name}-{number}").read_text() == f"{other}\n"
    started.close()


def test_where_every_process_was_killed_nothing_waits(
    done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilers, "_PROGRAM", "")  # ends at once
    started = Compilers(2)
    for group in KernelGroup:
        started.wait(group)
    started.close()


def test_a_process_ends_with_its_input(done: Path) -> None:
    started = Compilers(1)
    (process,) = started._processes
    started.wait(KernelGroup.BF16)
    assert process.stdin is not None
    process.stdin.close()
    wait_for(lambda: process.poll() is not None)
    started.close()


OWNER = """
import os, sys, time
from treadle.model.warmup import compilers
compilers._PROGRAM = sys.argv[1]
started = compilers.Compilers(1)
print(started._processes[0].pid, flush=True)
time.sleep(600)
"""

LONG = """
import os, sys, time
from pathlib import Path
from treadle.model.warmup import compilers, groups
def task():
    Path({path!r}).touch()
    time.sleep(600)
groups.TASKS[groups.KernelGroup.INFERENCE] = (task,) * 9
compilers.obey()
"""


def test_a_process_dies_with_what_started_it_in_the_middle_of_a_task(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    command = [sys.executable, "-c", OWNER, LONG.format(path=str(begun))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        process = int(owner.stdout.readline())
        wait_for(begun.exists)
        owner.kill()
    wait_for(lambda: gone(process) or "Z (zombie)" in status(process))


def test_there_are_no_more_processes_than_processors() -> None:
    assert 1 <= useful_processes() <= 4


def test_processes_that_get_no_task_are_ended(done: Path) -> None:
    compilers.start_early()
    waiting = [process.pid for process in compilers._waiting]
    assert waiting
    compilers.end_waiting()
    assert compilers._waiting == []
    assert all(map(gone, waiting))
