"""What a person sees of a sweep: the live table, and lines where nothing can be drawn."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from treadle.client.cli.display.console import Console
from treadle.client.cli.sweep.command import follow, make_report
from treadle.client.cli.sweep.trial_rows import live_rows, summary_line
from treadle.client.sweep.spec_reader import read_spec
from treadle.client.sweep.sweep import Sweep

from .fake_sweep_server import FakeSweepServer, refused
from .test_rich_terminal import ESCAPES, Terminal


def losses(options: Mapping[str, Any]) -> list[float]:
    return [3.0 + 8 / options["hidden_size"] - place / 10 for place in range(5)]


def made(folder: Path, server: FakeSweepServer) -> Sweep:
    (folder / "corpus.txt").write_text("hello")
    tables = {
        "sweep": {
            "name": "s",
            "model": "m",
            "method": "grid",
            "parallel": 2,
            "alias": "best",
            "prune_after_trials": 2,
        },
        "files": {"train": "corpus.txt"},
        "search": {"hidden_size": [64, 32, 16, 8, 7, 4]},
    }
    server.refuse = lambda options: refused("too\nsmall") if options["hidden_size"] == 7 else None
    return Sweep(server, read_spec(tables, folder))


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Console:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "70")
    monkeypatch.setenv("LINES", "24")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Console(Terminal(), {"TERM": "xterm"})


def shown(console: Console, sweep: Sweep, **options: bool) -> str:
    report = make_report(
        sweep,
        console,
        is_json=options.get("is_json", False),
        is_quiet=options.get("is_quiet", False),
    )
    with sweep, report:
        for event in sweep:
            if event.kind == "finished":
                report.close()
                report.show_results()
            else:
                report.show(event)
    assert isinstance(console.out, Terminal)
    return ESCAPES.sub("", console.out.getvalue())


def test_a_terminal_draws_a_table_in_place(terminal: Console, tmp_path: Path) -> None:
    text = shown(terminal, made(tmp_path, FakeSweepServer(losses)))
    assert "Ctrl-C leaves; the jobs continue" in text
    assert "trial 5 refused: too\\nsmall (hidden_size=7)" in text
    last = text[text.rindex("sweep s: 6 of 6 trials have ended (") :].splitlines()
    assert last[1].split() == ["rank", "trial", "loss", "step", "version", "hidden_size", "state"]
    assert [line.split()[1] for line in last[2:8]][:2] == ["1", "2"]
    assert last[7].split() == ["6", "5", "-", "-", "-", "7", "refused"]
    assert last[8].startswith("m@best is version ")


def test_rows_are_as_many_as_fit_the_open_ones_first(tmp_path: Path) -> None:
    with made(tmp_path, FakeSweepServer(losses)) as sweep:
        while len(sweep.trials) < 4:
            next(sweep)
        rows = live_rows(sweep, 3)
        assert len(rows) == 3
        still_open = [
            trial.number
            for trial in sorted(sweep.trials.values(), key=lambda each: each.number)
            if trial.state in ("queued", "running")
        ]
        assert [int(row[1]) for row in rows[: len(still_open)]] == still_open[:3]
        assert summary_line(sweep).startswith("sweep s: ")


def test_a_narrow_terminal_leaves_columns_out(
    terminal: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    text = shown(terminal, made(tmp_path, FakeSweepServer(losses)))
    assert "too narrow for: " in text
    assert max(map(len, text.replace("\r", "\n").splitlines())) <= 90


def test_json_has_every_event_and_the_ranked_trials(tmp_path: Path) -> None:
    console = Console(Terminal(), {})
    text = shown(console, made(tmp_path, FakeSweepServer(losses)), is_json=True)
    events = [json.loads(line) for line in text.splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds.count("queued") == 5
    assert kinds.count("refused") == 1
    results = [event for event in events if event["event"] == "result"]
    assert [event["rank"] for event in results] == [1, 2, 3, 4, 5, 6]
    assert results[0]["parameters"] == {"hidden_size": 64}
    assert results[0]["best_valid_loss"] == losses({"hidden_size": 64})[-1]
    assert results[-1] | {"reason": ""} == {
        "event": "result",
        "sweep": "s",
        "rank": 6,
        "trial": 5,
        "job": "",
        "state": "refused",
        "reason": "",
        "parameters": {"hidden_size": 7},
        "best_valid_loss": None,
        "validations": 0,
        "best_step": None,
        "step": 0,
        "total_steps": 0,
        "version": 0,
    }
    assert events[-1]["event"] == "alias"
    assert (events[-1]["model"], events[-1]["alias"]) == ("m", "best")
    console = Console(Terminal(), {})
    text = shown(console, made(tmp_path, FakeSweepServer(losses)), is_json=True, is_quiet=True)
    assert [json.loads(line)["event"] for line in text.splitlines()] == ["result"] * 6 + ["alias"]


def test_a_sweep_without_a_model_ends_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = made(tmp_path, FakeSweepServer(lambda options: [math.nan] * 5))
    console = Console(Terminal(), {"TERM": "dumb"})
    report = make_report(sweep, console, is_json=False, is_quiet=True)
    with sweep:
        assert follow(sweep, report, str(tmp_path / "r.csv")) == 1
    assert capsys.readouterr().err == "treadle: no trial of sweep 's' has made a model\n"
    assert len((tmp_path / "r.csv").read_text().splitlines()) == 7


def test_quiet_prints_only_the_results(tmp_path: Path) -> None:
    console = Console(Terminal(), {"TERM": "dumb"})
    lines = shown(console, made(tmp_path, FakeSweepServer(losses)), is_quiet=True).splitlines()
    assert lines[0].startswith("sweep s: 6 of 6 trials have ended")
    assert len(lines) == 1 + 7 + 1
