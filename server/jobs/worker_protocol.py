"""`encode` and `decode` convert the messages between the server and a training process.

A message is a JSON object on one line. The server sends `{"job": {...}}` once (see
`worker_request`), and then any number of

- `{"stop": "reason"}`: end the run with a last evaluation and a model; with `"at_once": true` a run
  that is still being prepared ends without them;
- `{"pause": "reason"}`: write a checkpoint and end the process;
- `{"threads": n}`: use n threads from now on.

The end of the pipe means that the server is gone. The process sends `{"event": NAME, ...}` with the
names

- `ready`: kernels are compiled, a job may be sent;
- `alive`: the process is alive;
- `started`, `progress`: the reports of `Trainer`, also of a run that continues;
- `validation`: how far a long validation is;
- `reading`: it reads a large corpus; `reason` says so;
- `restarted`: the checkpoint cannot be used, and the run starts over;
- `checkpoint`: a checkpoint is on disk, and weights are published; `took_s`: how long that took;
- `phase`: where the job is traced, what the process did, in `name`, and from when to when, in
  seconds since the epoch: `began_s` and `ended_s`;
- `paused`: a checkpoint is on disk; `reason` says why, `needs_bytes` how many bytes of disk space
  it lacked, or 0;
- `stopped`: it was to stop before its first step, so there is no model; `reason` says why;
- `saved`: the model is in the job's directory;
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
"""The most bytes of a message; the longest is a `started` event with long notices."""


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

    Errors of the model package, of the operating system and MemoryError keep their type. Any
    other error becomes a RuntimeError that names it.
    """
    name = packed["type"]
    message = packed["message"]
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
