"""`ModelLimits` says how many models, versions and aliases may exist; existing ones stay."""

from __future__ import annotations

from dataclasses import dataclass

from treadle.server.errors import StatusError, precondition


@dataclass(frozen=True)
class ModelLimits:
    """The most that may exist."""

    models: int = 100_000
    """Models of the server."""
    versions: int = 10_000
    """Versions of a model."""
    aliases: int = 100
    """Aliases of a model."""


DEFAULT_LIMITS = ModelLimits()


def counted(count: int, thing: str, things: str = "") -> str:
    """Returns a number with its noun, such as `1 model` or `2 models`.

    Args:
        count: The number.
        thing: The noun.
        things: Its plural; empty: the noun with an s.
    """
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {things or thing + 's'}"


def too_many_models(count: int) -> StatusError:
    """Returns the error for a new model where there are `count` already."""
    return precondition(
        f"the server has {counted(count, 'model')}, and no more may be made: delete some first"
    )


def too_many_versions(model: str, count: int, coming: int) -> StatusError:
    """Returns the error for a new version.

    Args:
        model: The name of the model.
        count: The number of its versions.
        coming: The number of versions that unfinished jobs will make.
    """
    jobs = f" and {counted(coming, 'unfinished job')}" if coming else ""
    return precondition(
        f"model {model!r} has {counted(count, 'version')}{jobs}, and no more may be made: "
        "delete versions first, or take another name"
    )


def too_many_aliases(model: str, count: int) -> StatusError:
    """Returns the error for a new alias where the model has `count` already."""
    return precondition(
        f"model {model!r} has {counted(count, 'alias', 'aliases')}, and no more may be made: "
        "move or delete one of them"
    )
