"""What the server and a training process say to each other: JSON, one message a line.

Server to worker: `{"job": {...}}` once, then any number of

- `{"stop": "reason"}`: end the run for good, examined and saved; with `"at_once": true` a run that
  is only being prepared ends without that;
- `{"pause": "reason"}`: keep the run's whole state and end the process;
- `{"threads": n}`: use so many threads from now on.

The end of the pipe means that the server is gone. Worker to server: `{"event": NAME, ...}` with
the names

- `ready`: kernels are compiled, a job may come;
- `started`, `progress`: what `Trainer` reports, also of a run that goes on from a checkpoint;
- `validation`: how far a long validation has come;
- `reading`: it reads a corpus that takes long to read; `reason` says so;
- `anew`: there is a checkpoint that cannot be used, and the run begins at its beginning;
- `checkpoint`: the state is on disk, and weights are published;
- `paused`: the state is on disk; `reason` says why, `needs_bytes` for want of how many bytes of
  disk space, 0 where it was not for that;
- `stopped`: it was told to stop before its first step, so there is no model; `reason` says why;
- `saved`: the model lies in the job's directory;
- `failed`: there is no model; `error` says why, in the form of `pack_error`.
"""

from __future__ import annotations

import json
from typing import Any

from treadle.model import errors
from treadle.model.errors import ConfigError, ModelError

Message = dict[str, Any]
"""One message, as JSON values."""

MAX_LINE_BYTES = 16 << 20
"""The longest message. A `started` event with long notices is the longest there is."""


def encode(message: Message) -> bytes:
    """Returns a message as one line of ASCII."""
    return json.dumps(message, separators=(",", ":")).encode("ascii") + b"\n"


def decode(line: bytes) -> Message:
    """Returns the message in a line.

    Raises:
        ValueError: The line is no JSON object.
    """
    message = json.loads(line)
    if not isinstance(message, dict):
        raise ValueError("a message must be a JSON object")
    return message


def pack_error(error: BaseException) -> Message:
    """Returns an error as JSON values, for `unpack_error` on the other side."""
    message = str(error)
    if isinstance(error, OSError):
        message = error.strerror or message
    # NumPy has one of its own.
    name = "MemoryError" if isinstance(error, MemoryError) else type(error).__name__
    packed: Message = {"type": name, "message": message}
    if isinstance(error, ConfigError):
        packed["faults"] = [[str(fault), fault.field] for fault in error.faults]
    if isinstance(error, OSError):
        packed["errno"] = error.errno
    return packed


def unpack_error(packed: Message) -> Exception:
    """Returns the error that `pack_error` packed.

    Errors of the model room, of the operating system and MemoryError come back as what they
    were; any other becomes a RuntimeError that names it.
    """
    name, message = packed["type"], packed["message"]
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, ConfigError) and packed.get("faults"):
        own, *others = packed["faults"]
        first = kind(*own)
        first.others = tuple(ConfigError(*fault) for fault in others)
        return first
    if isinstance(kind, type) and issubclass(kind, ModelError):
        return kind(message)
    if name == "MemoryError":
        return MemoryError(message)
    if packed.get("errno") is not None:
        return OSError(packed["errno"], message)
    return RuntimeError(f"{name}: {message}")
