"""`check_asked` lets a checkpoint be continued only by the run that began it.

The settings of a checkpoint are the resolved ones, and those of a run are what its file asks for.
So what was asked for is kept next to the checkpoint, with hashes of the corpus and of the model
that the run starts from.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treadle.model.atomic_files import write_atomically
from treadle.model.bounded_json import read_json
from treadle.model.config import TrainConfig
from treadle.model.errors import ConfigError, LoadError
from treadle.model.training.checkpoint import differing_settings

if TYPE_CHECKING:
    from treadle.model.data.files import CorpusFile

ASKED_FILE = "asked.json"
"""What was asked for, in the folder of the checkpoint."""


class OtherRunError(Exception):
    """The checkpoint is of another run; the message names the folder and the remedy."""


def check_asked(
    folder: Path,
    config: TrainConfig,
    corpus: Sequence[CorpusFile],
    init_from: Path | None,
    *,
    is_begun: bool,
) -> None:
    """Checks that a run is the one that began the checkpoint, or notes what a new run asks for.

    Args:
        folder: The folder of the checkpoint.
        config: The settings as the file has them.
        corpus: The files of the corpus.
        init_from: The model that the run starts from; None: random weights.
        is_begun: Whether there is a checkpoint.

    Raises:
        OtherRunError: The run is another one.
        LoadError: What was noted is damaged.
        OSError: A file cannot be read or written.
    """
    path = folder / ASKED_FILE
    asked: dict[str, Any] = {
        "config": config.to_json(),
        "corpus": [[file.role, file.weight, _sha256(file.data)] for file in corpus],
        "init_from": None if init_from is None else _sha256(init_from),
    }
    if is_begun:
        try:
            noted = read_json(path.read_text("utf-8"))
            parts = differing_settings(TrainConfig.from_json(noted["config"]), config)
            parts += [name for name in ("corpus", "init_from") if noted[name] != asked[name]]
        except FileNotFoundError:
            pass  # it is of a version that did not note it
        except (ConfigError, KeyError, TypeError, ValueError, RecursionError) as fault:
            raise LoadError(
                f"{path} is damaged: delete it to continue the run, or the folder to start over"
            ) from fault
        else:
            if parts:
                raise OtherRunError(
                    f"the checkpoint in {folder} is of another run (see {', '.join(parts)}): "
                    "restore what has changed to continue it, delete the folder to start over, or "
                    "name another by --checkpoint-dir"
                )
            return
    write_atomically(path, json.dumps(asked).encode())


def _sha256(data: bytes | os.PathLike[str]) -> str:
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    with Path(data).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
