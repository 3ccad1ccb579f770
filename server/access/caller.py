"""`Caller` is who makes a call: its name, its role, and the models that it may read and write."""

from __future__ import annotations

import math
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import IntEnum
from fnmatch import fnmatchcase

from treadle.server.access.quotas import NO_QUOTAS, Quotas
from treadle.server.resources.work_owner import set_work_owner


class Role(IntEnum):
    """What a caller may do; each role includes those before it."""

    READER = 1
    """Lists and describes."""
    USER = 2
    """Generates, scores and embeds."""
    TRAINER = 3
    """Trains, learns and publishes; manages its own jobs and the models that it may write."""
    ADMIN = 4
    """Does everything, with what belongs to every caller."""

    @property
    def title(self) -> str:
        """The role as files and messages write it."""
        return self.name.lower()


ALL_MODELS = ("*",)
"""The patterns that every model name matches."""


@dataclass(frozen=True)
class Caller:
    """The caller of an RPC."""

    name: str
    """Its name; empty: `ANONYMOUS`. Jobs and corpora belong to it."""
    role: Role
    """What it may do."""
    read_models: tuple[str, ...] = ALL_MODELS
    """Patterns of the models that it may read and use, as in `fnmatch`."""
    write_models: tuple[str, ...] = ALL_MODELS
    """Patterns of the models that it may train, publish, name and delete."""
    quotas: Quotas = NO_QUOTAS
    """How much it may use."""
    credential_id: str = field(default="", compare=False)
    """The token, certificate or key with which it proved its name; never a secret."""
    valid_until_s: float = field(default=math.inf, compare=False)
    """When that expires, in seconds since the epoch."""

    @property
    def is_admin(self) -> bool:
        """Whether everything of every caller is open to it."""
        return self.role is Role.ADMIN

    def may_read(self, model: str) -> bool:
        """Returns whether it may list, describe and use a model.

        Args:
            model: The name of the model, without version and alias.
        """
        return self.is_admin or _matches(model, self.read_models) or self.may_write(model)

    def may_write(self, model: str) -> bool:
        """Returns whether it may train, publish, name and delete versions of a model.

        Args:
            model: The name of the model, without version and alias.
        """
        return self.is_admin or (self.role >= Role.TRAINER and _matches(model, self.write_models))

    def owns(self, owner: str) -> bool:
        """Returns whether a job or a corpus is open to it.

        Args:
            owner: The name of the caller that made it; empty: it is of no known caller, and open
                to admins only.
        """
        return self.is_admin or (owner != "" and owner == self.name)


ANONYMOUS = Caller("", Role.ADMIN)
"""The caller of a server without callers: it may do everything."""

_current: ContextVar[Caller] = ContextVar("caller", default=ANONYMOUS)


def current_caller() -> Caller:
    """Returns the caller of the running call.

    It is known to the task of the call on the event loop. Threads do not know it: pass it to them.
    """
    return _current.get()


def set_current_caller(caller: Caller) -> None:
    """Sets the caller of the running call, in its task."""
    _current.set(caller)
    set_work_owner(caller.name)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
