"""`CASES` tries the files of `corpus/`: what was a fault once, or leads far into the code.

The name of a folder is the kind of its files. Calls are in `corpus/request`, see `kept_calls`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

from treadle.model.config import DataConfig, TokenizerConfig
from treadle.model.enums import CorpusFormat, CorpusLayout, MissingPolicy, TokenizerKind

from . import cases, credentials, data_dirs
from .mutate import Mutator
from .requests import DrawnCall

FOLDER = Path(__file__).with_name("corpus")


def kept_calls() -> list[tuple[str, DrawnCall]]:
    """Returns the calls that were kept, and the names of their files."""
    found = []
    for path in sorted((FOLDER / "request").glob("*.json")):
        content = json.loads(path.read_text())
        messages = tuple(map(base64.b64decode, content["messages"]))
        found.append((path.name, DrawnCall(0, content["method"], messages, True, None)))
    return found


def _corpus(data: bytes) -> None:
    """Reads a corpus in every format, and as tokens of several kinds."""
    for number, format_ in enumerate(CorpusFormat):
        for kind in (TokenizerKind.CHARACTERS, TokenizerKind.WORDS, TokenizerKind.SUBWORDS):
            layout = list(CorpusLayout)[number % 2]
            cut = DataConfig(layout=layout, format=format_, missing=MissingPolicy.SKIP)
            cases.use_corpus(data, TokenizerConfig(kind, 300), cut, 0)


CASES: dict[str, Callable[[bytes], None]] = {
    "model_file": lambda data: cases.use_model_file(data, Mutator(0)),
    "corpus": _corpus,
    "expression": lambda data: cases.use_expression(data.decode(), Mutator(0)),
    "callers_file": credentials.use_callers_file,
    "database": lambda data: data_dirs.use_database(data.decode()),
}
"""By the name of a folder, what is done with each of its files."""


def kept_file(number: int) -> None:
    """Tries one of the files, in the order of their names."""
    path = kept_files()[number]
    CASES[path.parent.name](path.read_bytes())


def kept_files() -> list[Path]:
    """Returns the files of all kinds but calls."""
    return [path for kind in sorted(CASES) for path in sorted((FOLDER / kind).iterdir())]
