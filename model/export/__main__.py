"""`main` converts a model file: `python -m treadle.model.export FILE FORMAT OUT`.

`treadle models export` runs it in a process of its own, since a client knows no tensors. Exit
codes: 0 done; 1 the file cannot be read, converted or written, with one sentence on standard error;
130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from treadle.model.errors import ModelError
from treadle.model.export import write_npz, write_onnx, write_rtneural
from treadle.model.model import Model

WRITERS: dict[str, Callable[[Model, Path], None]] = {
    "npz": write_npz,
    "onnx": write_onnx,
    "rtneural": write_rtneural,
    "safetensors": Model.save,
}
"""What writes each format."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Converts a model file.

    Args:
        arguments: The words after the program's name; None takes those of the process.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(
        prog="python -m treadle.model.export", description="Convert a model file."
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="the model file")
    parser.add_argument("format", metavar="FORMAT", choices=WRITERS, help=", ".join(WRITERS))
    parser.add_argument("out", metavar="OUT", type=Path, help="the file to write")
    args = parser.parse_args(arguments)
    try:
        WRITERS[args.format](Model.load(args.file), args.out)
    except ModelError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{error.filename or args.out}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # the caller, who is interrupted as well, says so
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
