"""`convert` turns a model file into another format, in a process of its own.

A client knows no tensors: it installs and imports grpcio and protobuf and nothing else. So
`treadle.model.export` does the work, where what it needs is installed. A process keeps NumPy and
Numba out of this one, and a hook for plug-ins would have one plug-in.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys

from treadle.client.errors import InputError, TreadleError

SAFETENSORS = "safetensors"

SUFFIXES = {
    "onnx": ".onnx",
    "rtneural": ".rtneural.json",
    SAFETENSORS: ".safetensors",
    "npz": ".npz",
}
"""The formats, and how their files are named."""

_PACKAGES = {"numpy": "server", "numba": "server", "safetensors": "server"}
"""What reading a model file needs, and the extra that installs it."""

_EXTRA_PACKAGES = {"onnx": {"onnx": "onnx"}}
"""What a format needs besides."""


def check_converter(name: str) -> None:
    """Checks that a format can be written here, before a model is fetched.

    Args:
        name: The format.

    Raises:
        InputError: A package is missing.
    """
    needed = {**_PACKAGES, **_EXTRA_PACKAGES.get(name, {})}
    missing = [package for package in needed if importlib.util.find_spec(package) is None]
    if missing:
        extras = ",".join(dict.fromkeys(needed.values()))
        raise InputError(
            f"--format {name} needs {', '.join(missing)} on this machine: "
            f"pip install '.[{extras}]' in a checkout of Treadle"
        )


def convert(source: str, name: str, target: str) -> None:
    """Converts a model file.

    Args:
        source: The model file.
        name: The format.
        target: The file to write.

    Raises:
        InputError: The file is not a model, or cannot be converted or written.
        TreadleError: The converter broke down.
    """
    # -P: a file of the current folder must not take the place of a package.
    words = [sys.executable, "-P", "-m", "treadle.model.export", "--", source, name, target]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode == 0:
        return
    lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason was given"]
    if done.returncode == 1 and len(lines) == 1:
        raise InputError(lines[0])
    raise TreadleError(f"the conversion has ended with code {done.returncode}: {lines[-1]}")
