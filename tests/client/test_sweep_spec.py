"""Files of sweeps: what is legal in them, and errors that name the key and the remedy."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from treadle.client import Client
from treadle.client.cli.main import main
from treadle.client.errors import InputError
from treadle.client.options import TrainOptions
from treadle.client.sweep.search_space import Choices, Range, share_of
from treadle.client.sweep.settings import _ELSEWHERE, _NOT_SEARCHED
from treadle.client.sweep.spec import SweepFile, SweepSpec
from treadle.client.sweep.spec_reader import _SWEEP, load_spec

ROOT = Path(__file__).resolve().parents[2]

GOOD = """
[sweep]
name = "s"
model = "m"
method = "random"
trials = 5

[files]
train = "corpus.txt"

[search]
hidden_size = [8, 16]
"""


def written(folder: Path, text: str) -> Path:
    (folder / "corpus.txt").write_text("hello")
    (folder / "other.txt").write_text("hello")
    path = folder / "spec.toml"
    path.write_text(text)
    return path


def test_the_least_that_a_file_needs(tmp_path: Path) -> None:
    spec = load_spec(written(tmp_path, GOOD))
    assert spec == SweepSpec(
        name="s",
        model="m",
        method="random",
        files=(SweepFile(tmp_path / "corpus.txt"),),
        search={"hidden_size": Choices((8, 16))},
        trials=5,
    )


def test_everything_that_a_file_can_have(tmp_path: Path) -> None:
    text = """
        [sweep]
        name = "s-1"
        model = "m.1"
        method = "tpe"
        trials = 50
        parallel = 4
        seed = 3
        metric = "bits_per_character"
        max_time_s = 3600
        alias = "best"
        prune = true
        prune_after_trials = 6
        prune-after-validations = 2
        startup_trials = 5
        [files]
        train = ["corpus.txt", { path = "other.txt", weight = 1.5 }]
        valid = "other.txt"
        test = ["other.txt"]
        [train]
        max-steps = 100
        cell = "gru"
        tied_weights = false
        dropout = 0
        [search]
        learning_rate = { min = 1e-4, max = 0.1, scale = "log" }
        hidden-size = { min = 8, max = 64, step = 8 }
        layers = { min = 1, max = 3 }
        tokenizer = ["characters", "bytes"]
        [tags]
        team = "x"
        """
    spec = load_spec(written(tmp_path, text))
    assert spec.search == {
        "learning_rate": Range(1e-4, 0.1, is_integer=False, is_log=True),
        "hidden_size": Range(8, 64, is_integer=True, step=8),
        "layers": Range(1, 3, is_integer=True),
        "tokenizer": Choices(("characters", "bytes")),
    }
    assert spec.files == (
        SweepFile(tmp_path / "corpus.txt"),
        SweepFile(tmp_path / "other.txt", weight=1.5),
        SweepFile(tmp_path / "other.txt", "valid"),
        SweepFile(tmp_path / "other.txt", "test"),
    )
    assert spec.train == {"max_steps": 100, "cell": "gru", "tied_weights": False, "dropout": 0}
    assert (spec.metric, spec.max_time_s, spec.alias) == ("bits_per_character", 3600.0, "best")
    assert (spec.prune_after_trials, spec.prune_after_validations, spec.startup_trials) == (6, 2, 5)
    assert spec.tags == {"team": "x"}


def test_a_grid_counts_its_trials(tmp_path: Path) -> None:
    grid = GOOD.replace("random", "grid").replace("trials = 5\n", "")
    grid += "dropout = { min = 0, max = 0.5, points = 3 }\nlayers = { min = 1, max = 2 }\n"
    assert load_spec(written(tmp_path, grid)).trials == 12
    first = grid.replace('method = "grid"', 'method = "grid"\ntrials = 7')
    assert load_spec(written(tmp_path, first)).trials == 7


SWEEP_FAULTS = [
    ('name = "s"', "", 'sweep.name is missing: add name = "..." under [sweep]'),
    ('name = "s"', 'name = "a b"', "sweep.name must be 1 to 64 letters, digits, '.', '_' and '-'"),
    ('model = "m"', "model = 3", "sweep.model must be 1 to 100 letters"),
    ('"random"', '"bayes"', "sweep.method must be one of grid, random, tpe, not 'bayes'"),
    ("trials = 5", "", "sweep.trials is missing: add trials = 20 under [sweep]"),
    ("trials = 5", "trials = 0", "sweep.trials must be a whole number from 1 to 10,000, not 0"),
    ("trials = 5", "trials = 1.5", "sweep.trials must be a whole number from 1 to 10,000, not 1.5"),
    ("trials = 5", "trials = true", "sweep.trials must be a whole number"),
    ("trials = 5", "trial = 5", "sweep.trial is no key of a sweep (did you mean trials?)"),
    ("trials = 5", "trials = 5\nhidden_size = 3", "a setting of the training belongs in [train]"),
    ("trials = 5", "trials = 5\nparallel = 0", "sweep.parallel must be a whole number from 1"),
    ("trials = 5", "trials = 5\nmetric = 'loss'", "sweep.metric must be one of best_valid_loss, "),
    ("trials = 5", "trials = 5\nmax_time_s = 0", "sweep.max_time_s must be above 0, not 0"),
    ("trials = 5", "trials = 5\nmax_time_s = nan", "sweep.max_time_s must be a number, not nan"),
    ("trials = 5", "trials = 5\nalias = 'latest'", "sweep.alias must not be 'latest', which means"),
    ("trials = 5", "trials = 5\nalias = '3'", "sweep.alias must not be '3', which means a version"),
    ("trials = 5", "trials = 5\nprune = 'no'", "sweep.prune must be true or false, not 'no'"),
    (
        "trials = 5",
        "trials = 5\nprune = false\nprune_after_trials = 3",
        "sweep.prune_after_trials has no effect with prune = false: leave it out",
    ),
    ("trials = 5", "trials = 5\nstartup_trials = 3", 'sweep.startup_trials is for method = "tpe"'),
    ("[sweep]", "[sweeps]", "[sweeps] is no table of a sweep (did you mean sweep?)"),
    ("[sweep]\n", "sweep = 3\n[train]\n", "sweep must be a table: write [sweep] above its keys"),
]

FILE_FAULTS = [
    ('train = "corpus.txt"', "", "[files] is missing or empty: it has the training files"),
    ('train = "corpus.txt"', 'valid = "corpus.txt"', "files.train is missing: name the training"),
    (
        'train = "corpus.txt"',
        'tran = "corpus.txt"',
        "files.tran is no role of a file (did you mean",
    ),
    ('"corpus.txt"', "3", "files.train must be the path of a file, not 3"),
    ('"corpus.txt"', '["corpus.txt", ""]', "files.train[1] must be the path of a file, not ''"),
    ('"corpus.txt"', '{ path = "corpus.txt", weight = 0 }', "files.train.weight must be above 0"),
    ('"corpus.txt"', '{ file = "corpus.txt" }', 'files.train must be { path = "FILE", weight = 2'),
    ('"corpus.txt"', '"."', "is a folder: name a file"),
    (
        'train = "corpus.txt"',
        'train = "corpus.txt"\nvalid = { path = "other.txt", weight = 2 }',
        "files.valid.weight is for training files: leave it out",
    ),
]

TRAIN_FAULTS = [
    ("hidden_sise = 8", "train.hidden_sise is no training setting (did you mean hidden_size?)"),
    ("max_time = 8", "train.max_time is no training setting (did you mean max_time_s?)"),
    ("max_steps = 'x'", "train.max_steps: max_steps cannot be 'x': it must be a whole number"),
    ("max_time_s = '3m'", "train.max_time_s must be seconds as a number, such as 90, not '3m'"),
    ("max_steps = 3\nmax-steps = 4", "train.max-steps is there twice, with _ and with -: leave"),
    ("max_steps = true", "train.max_steps must be no truth value, not true"),
    ("tied_weights = 1", "train.tied_weights must be true or false, not 1"),
    ("cell = 'lstn'", "train.cell: cell cannot be 'lstn': it is one of rnn, gru, lstm"),
    ("batch_size = 0", "train.batch_size: batch_size cannot be 0: leave it out for the default"),
    ("model = 'm'", "train.model cannot be set: [sweep] has the model's name"),
    ("request_id = 'm'", "train.request_id cannot be set: a sweep chooses it for each trial"),
    ("hidden_size = 8", "hidden_size is in [train] and in [search]: leave it out of one of them"),
    ("validation_fraction = 0", "train.validation_fraction is 0 and files.valid is missing"),
]

SEARCH_FAULTS = [
    ("", "[search] is missing or empty: it has the values to try: hidden_size = [64, 128]"),
    ("hidden_size = 8", "search.hidden_size must be a list of values or a range such as { min = 1"),
    ("hidden_size = []", "search.hidden_size is an empty list: give the values to try"),
    ("hidden_size = [8, 8]", "search.hidden_size has 8 twice: leave it out once"),
    ("hidden_size = [8, 'x']", "search.hidden_size[1]: hidden_size cannot be 'x'"),
    ("hidden_size = [[8]]", "search.hidden_size[0] must be a number, a text, or true or false"),
    ("dropout = [nan]", "search.dropout[0] must be a finite number, not nan"),
    ("hidden_size = { min = 8 }", "search.hidden_size.max is missing: give min and max"),
    ("hidden_size = { min = 8, max = 8 }", "search.hidden_size.min must be less than max, not 8"),
    ("hidden_size = { min = 8, max = 9.5 }", "search.hidden_size.max must be a whole number"),
    ("hidden_size = { min = 8, max = 9, lo = 1 }", "search.hidden_size.lo is no key of a range"),
    ("hidden_size = { min = 8, max = 16, step = 9 }", "step must be a whole number from 1 to 8"),
    (
        "hidden_size = { min = 8, max = 16, points = 3 }",
        'search.hidden_size.points is for method = "grid": leave it out',
    ),
    (
        "hidden_size = { min = 8, max = 16, step = 2, scale = 'log' }",
        'search.hidden_size.step does not go with scale = "log": leave one of them out',
    ),
    ("dropout = { min = 0, max = 1, scale = 'log' }", "search.dropout.min must be above 0 with"),
    ("dropout = { min = 0, max = 0.5, step = 1 }", "search.dropout.step is for whole numbers"),
    ("dropout = { min = 0, max = inf }", "search.dropout.max must be a number, not inf"),
    ("dropout = { min = 0, max = 1, scale = 'ln' }", "search.dropout.scale must be one of linear"),
    ("cell = { min = 0, max = 1 }", "search.cell is no number: give a list of values"),
    ("tokenizer = ['bytes', 'words']", "so that losses per token cannot be compared: set sweep.m"),
    ("validation_fraction = [0.1, 0.2]", "search.validation_fraction cannot be searched: it chan"),
    ("sample_tokens = [1, 2]", "search.sample_tokens cannot be searched: it changes what is rep"),
    ("tags = ['a']", "search.tags cannot be set: [tags] has them"),
    ("hiden_size = [8]", "search.hiden_size is no training setting (did you mean hidden_size?)"),
    (f"init_from = ['{'x' * 300}']", "search.init_from[0] must have at most 254 characters"),
]

OTHERS = [
    ("[tags]\nteam = 3", 'tags.team must be a text: write team = "3"'),
    ("[tags]\nsweep = 'x'", "tags.sweep is a tag that the sweep sets itself (sweep, trial, "),
    ("[tags]\n'param/x' = 'x'", "tags.param/x is a tag that the sweep sets itself"),
    ("hidden_size = [", "is not TOML: "),
]


def cases() -> list[tuple[str, str]]:
    """Every wrong file with the words that its error has."""
    found = []
    for before, after, fault in SWEEP_FAULTS + FILE_FAULTS:
        assert before in GOOD
        found.append((GOOD.replace(before, after, 1), fault))
    found += [(f"{GOOD}\n[train]\n{line}", fault) for line, fault in TRAIN_FAULTS]
    searched = "hidden_size = [8, 16]"
    found += [(GOOD.replace(searched, line), fault) for line, fault in SEARCH_FAULTS]
    found += [(f"{GOOD}\n{lines}", fault) for lines, fault in OTHERS]
    grid = GOOD.replace("random", "grid").replace("trials = 5\n", "")
    found += [
        (grid + "dropout = { min = 0, max = 0.5 }", "search.dropout needs points in a grid: how m"),
        (
            grid + "layers = { min = 1, max = 8, points = 2, step = 2 }",
            "search.layers.points does not go with step: leave one of them out",
        ),
        (
            grid + "seed = { min = 0, max = 9999 }",
            "[search] has 20,000 combinations, and a sweep at most 10,000 trials: take fewer",
        ),
    ]
    return found


@pytest.mark.parametrize(("text", "fault"), cases())
def test_a_wrong_file_is_named_with_the_key_and_the_remedy(
    tmp_path: Path, text: str, fault: str
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InputError, match=re.escape(fault)) as caught:
        load_spec(path)
    assert str(caught.value).startswith(str(path)) or "cannot read" in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*none.toml: No such file"):
        load_spec(tmp_path / "none.toml")
    with pytest.raises(InputError, match=r"cannot read .*none.txt: No such file"):
        load_spec(written(tmp_path, GOOD.replace("corpus.txt", "none.txt")))
    with pytest.raises(InputError, match="cannot read"):
        load_spec(tmp_path)
    path = tmp_path / "latin.toml"
    path.write_bytes(b"# \xe4\n")
    with pytest.raises(InputError, match="is not text in UTF-8: save it as that"):
        load_spec(path)


def test_the_command_says_it_in_one_line_before_it_connects(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, GOOD.replace("hidden_size =", "hiden_size ="))
    assert main(["--server", "127.0.0.1:1", "sweep", str(path)]) == 2
    said = capsys.readouterr().err
    assert said == (
        f"treadle: {path}: search.hiden_size is no training setting (did you mean hidden_size?); "
        "`treadle train --help` lists them\n"
    )
    good = written(tmp_path, GOOD)
    assert main(["sweep", str(good), "--out", str(tmp_path / "no" / "r.csv")]) == 2
    assert "cannot write" in capsys.readouterr().err


def test_a_server_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, GOOD)
    assert main(["--server", "127.0.0.1:1", "sweep", str(path), "--reconnect", "0"]) == 3
    assert "127.0.0.1:1" in capsys.readouterr().err


def test_a_client_takes_a_path_a_spec_or_tables(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    with Client("127.0.0.1:1") as client:
        with client.sweep(path) as one, client.sweep(load_spec(path)) as two:
            assert one.spec == two.spec
        tables = tomllib.loads(GOOD.replace("corpus.txt", str(tmp_path / "corpus.txt")))
        with client.sweep(tables) as three:
            assert three.spec == one.spec
        with pytest.raises(InputError, match="cannot read"):
            client.sweep(tmp_path / "none.toml")


def test_every_key_of_a_sweep_is_a_field_and_is_described() -> None:
    names = {field.name for field in fields(SweepSpec)}
    assert {*_SWEEP} == names - {"files", "search", "train", "tags"}
    page = (ROOT / "docs" / "sweep.md").read_text()
    assert [key for key in _SWEEP if f"`{key}`" not in page] == []


def test_every_reason_is_given_for_a_setting() -> None:
    settings = {*TrainOptions.__annotations__, "model"}
    assert {*_ELSEWHERE, *_NOT_SEARCHED} <= settings
    page = (ROOT / "docs" / "sweep.md").read_text()
    assert [name for name in _NOT_SEARCHED if f"`{name}`" not in page] == []


def drawn(values: Any, count: int = 2000) -> list[Any]:
    return [values.at(share_of(1, trial, "x")) for trial in range(1, count + 1)]


def test_ranges_give_every_number_and_none_beyond() -> None:
    assert {*drawn(Range(1, 4, is_integer=True))} == {1, 2, 3, 4}
    assert {*drawn(Range(8, 30, is_integer=True, step=8))} == {8, 16, 24}
    assert {*drawn(Range(1, 4, is_integer=True, is_log=True))} == {1, 2, 3, 4}
    fractions = drawn(Range(0.001, 0.1, is_integer=False, is_log=True))
    assert 0.001 <= min(fractions) < 0.0011
    assert 0.09 < max(fractions) <= 0.1
    assert 0.4 < sum(value < 0.01 for value in fractions) / len(fractions) < 0.6
    assert all(value == float(f"{value:.6g}") for value in fractions)
    assert {*drawn(Choices(("a", "b")))} == {"a", "b"}
    assert Choices(("a", "b")).at(1 - 2**-53) == "b"
    assert Range(0, 1, is_integer=False).at(1 - 2**-53) == 1.0


def test_random_settings_stay_what_they_are() -> None:
    """A sweep continues after an update of the client: these numbers may never change."""
    assert share_of(0, 1, "hidden_size") == 0.01772677400722944
    rate = Range(1e-4, 0.1, is_integer=False, is_log=True)
    assert [rate.at(share_of(3, trial, "learning_rate")) for trial in (1, 2, 3)] == [
        0.00641727,
        0.000303722,
        0.0039833,
    ]


def test_the_values_of_a_grid() -> None:
    assert Range(1, 4, is_integer=True).grid() == range(1, 5)
    assert Range(1, 64, is_integer=True, is_log=True, points=4).grid() == [1, 4, 16, 64]
    assert Range(1, 2, is_integer=True, points=5).grid() == [1, 2]
    log = Range(0.001, 1.0, is_integer=False, is_log=True, points=4)
    assert log.grid() == [0.001, 0.01, 0.1, 1.0]
    assert Range(0.0, 0.5, is_integer=False, points=3).grid() == [0.0, 0.25, 0.5]
