"""`Constants` are the measured figures that the formulas begin with."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NOT_MEASURED = math.nan
"""Formulas pass it on, and tables show a dash in its place."""


def _constant(text: str, unit: str) -> float:
    value: float = field(default=NOT_MEASURED, metadata={"text": text, "unit": unit})
    return value


@dataclass(frozen=True)
class Constants:
    """What one operation takes on one machine; LSTM of 256 units over 65 characters."""

    # A server.
    call_s: float = _constant("event loop for one Generate call of one token", "s")
    message_s: float = _constant("event loop for each further reply of a stream", "s")
    tokens_per_message: float = _constant("tokens of a reply, 64 streams at once", "tokens")
    state_bytes: float = _constant("state of a session as the caller keeps it", "bytes")
    connection_bytes: float = _constant("server's memory for an idle connection", "bytes")

    # Kernels, processor time of one core.
    decode_s: float = _constant("a new token, 64 sequences decoding together", "s")
    decode_alone_s: float = _constant("a new token, one sequence alone", "s")
    prefill_s: float = _constant("a token of a prompt that is read", "s")
    train_s: float = _constant("a token that is trained on, batch of 64 x 64", "s")
    weight_bytes: float = _constant("weights of the network", "bytes")

    # Databases.
    sqlite_event_s: float = _constant("SQLite: an event of a job, committed", "s")
    event_s: float = _constant("PostgreSQL: an event of a job, committed, one connection", "s")
    quiet_event_s: float = _constant("PostgreSQL: an event, 16 connections, without NOTIFY", "s")
    notified_event_s: float = _constant("PostgreSQL: the same with NOTIFY, nobody listens", "s")
    delivery_s: float = _constant("PostgreSQL: that event, more for each server that listens", "s")
    renewal_s: float = _constant("PostgreSQL: renewing a lease, 16 connections", "s")
    look_s: float = _constant("PostgreSQL: a look at the queue, 16 connections", "s")
    acquire_s: float = _constant("PostgreSQL: choosing a job from the queue, with its lock", "s")
    backend_bytes: float = _constant("PostgreSQL: memory of an idle connection", "bytes")
    notification_s: float = _constant("server: processor time to receive a notification", "s")

    # Blobs: a part for each operation, and a part for each byte.
    directory_put_s: float = _constant("directory: writing a blob, synced", "s")
    directory_put_byte_s: float = _constant("directory: the same, for each byte", "s")
    store_put_s: float = _constant("object store: writing a blob", "s")
    store_put_byte_s: float = _constant("object store: the same, for each byte", "s")
    store_get_s: float = _constant("object store: reading a blob", "s")
    store_get_byte_s: float = _constant("object store: the same, for each byte", "s")

    # The gradient's way between two ranks: all-to-all, then all-gather.
    exchange_s: float = _constant("MPI: an exchange of gradients, two ranks", "s")
    exchange_byte_s: float = _constant("MPI: the same, for each byte of gradient", "s")


@dataclass(frozen=True)
class Measured:
    """Constants, and where they are from."""

    constants: Constants
    """The figures."""
    machine: dict[str, Any]
    """The machine, as `machine.describe` has it."""
    date: str
    """The day, as YYYY-MM-DD."""

    def save(self, path: Path) -> None:
        """Writes them as JSON; null stands for what was not measured."""
        values = dataclasses.asdict(self.constants)
        shown = {name: None if math.isnan(value) else value for name, value in values.items()}
        content = {"date": self.date, "machine": self.machine, "constants": shown}
        path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")

    @classmethod
    def load(cls, path: Path) -> Measured:
        """Returns what `save` wrote.

        Raises:
            ValueError: It is no such file.
        """
        try:
            content = json.loads(path.read_text("utf-8"))
            known = {item.name for item in dataclasses.fields(Constants)}
            if unknown := content["constants"].keys() - known:
                raise ValueError(f"{path} has constants that nothing reads: {sorted(unknown)}")
            known_values = content["constants"].items()
            values = {name: float(value) for name, value in known_values if value is not None}
            return cls(Constants(**values), content["machine"], content["date"])
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            fault = f"{path} is no file of constants ({error!r}): make it with --measure"
            raise ValueError(fault) from error


def described() -> dict[str, tuple[str, str]]:
    """Returns the description and the unit of each constant by its name."""
    return {
        item.name: (item.metadata["text"], item.metadata["unit"])
        for item in dataclasses.fields(Constants)
    }
