"""What a training process does: one job, with every step of it told to the server."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import IO, Any

from treadle.model import Trainer, warm
from treadle.model.config import TrainConfig
from treadle.model.errors import ModelError
from treadle.server import wire

_MAX_SAMPLE = 10_000
"""Characters of a sample that are passed on; words may be of any length."""


class Stop:
    """A wish to end the run early; the trainer asks for it between steps."""

    def __init__(self) -> None:
        self.reason = ""
        self.heeded = False
        """True once the trainer was told so; it may also have ended before."""

    def request(self, reason: str) -> None:
        """Asks the run to end; the first reason stays."""
        self.reason = self.reason or reason

    def requested(self) -> bool:
        """Tells the trainer whether the run should end."""
        self.heeded = bool(self.reason)
        return self.heeded


def serve(requests: IO[bytes], replies: IO[bytes], warm_up: bool) -> int:
    """Gets ready, waits for a job and does it.

    Args:
        requests: Where the server's messages come from.
        replies: Where messages to the server go.
        warm_up: Whether to load every kernel before the job comes.

    Returns:
        The exit code.
    """
    if warm_up:
        warm()
    _send(replies, event="ready")
    line = requests.readline()
    if not line:
        return 0
    stop = Stop()
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(1))
    signal.signal(signal.SIGTERM, lambda *_: stop.request("the training process was told to end"))
    threading.Thread(target=_listen, args=(requests, stop), daemon=True).start()
    try:
        _work(wire.decode(line)["job"], replies, stop)
    except Exception as error:
        if not isinstance(error, (ModelError, BrokenPipeError)):
            traceback.print_exc(file=sys.stderr)
        _send(replies, event="failed", error=wire.pack_error(error))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the end has begun anyway
    return 0


def _work(job: wire.Message, replies: IO[bytes], stop: Stop) -> None:
    config = TrainConfig.from_json(job["config"])
    limit = job["memory_limit_bytes"]
    trainer = Trainer(Path(job["corpus"]), config, job["threads"], limit)
    started = dataclasses.asdict(trainer.started) | {"config": trainer.started.config.to_json()}
    _send(replies, event="started", **started)
    steps = 0
    for progress in trainer.run(stop.requested):
        steps = progress.step
        sample = progress.sample and progress.sample[:_MAX_SAMPLE]
        _send(replies, event="progress", **dataclasses.asdict(progress) | {"sample": sample})
    if stop.heeded:
        if not steps:
            _send(replies, event="stopped", reason=stop.reason)
            return
        trainer.ended_by = f"{stop.reason} after {steps} steps"
    trainer.model.save(job["model"])
    _send(replies, event="saved")


def _listen(requests: IO[bytes], stop: Stop) -> None:
    """Takes the server's wish to stop; ends the process when the server is gone."""
    for line in requests:
        message = wire.decode(line)
        if "stop" in message:
            stop.request(message["stop"])
    os.kill(os.getpid(), signal.SIGHUP)  # the main thread ends, and tidies up


def _send(replies: IO[bytes], **message: Any) -> None:
    replies.write(wire.encode(message))
