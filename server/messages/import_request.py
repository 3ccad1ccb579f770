"""`check_import` and `vocabulary_config` check the spec of an ImportModel call."""

from __future__ import annotations

import re

from treadle.model.config import TokenizerConfig
from treadle.model.enums import CorpusLayout, TokenizerKind
from treadle.server.errors import Violation, invalid
from treadle.server.messages.enums import word_of
from treadle.server.messages.fields import to_json
from treadle.server.messages.requests import build
from treadle.server.names import alias_violations, name_violations
from treadle.v1 import sequence_pb2 as pb

_HASH = re.compile(r"[0-9a-f]{64}")
_HASH_FORM = "64 lower-case hexadecimal digits"

_STATE_DICT = "spec.state_dict"


def hash_violations(sha256: str, field: str) -> list[Violation]:
    """Returns what is wrong with a SHA-256.

    Args:
        sha256: The hash.
        field: The field of the request that holds it.

    Returns:
        Nothing, or one violation of `field`.
    """
    if _HASH.fullmatch(sha256):
        return []
    return [(field, f"{field} must be {_HASH_FORM}")]


def check_import(spec: pb.ImportModelSpec, most_bytes: int) -> None:
    """Checks the spec of an import, without the settings of a conversion.

    Args:
        spec: The spec.
        most_bytes: Bytes of the largest file.

    Raises:
        StatusError: INVALID_ARGUMENT with every field at fault.
    """
    found = name_violations(spec.model, "spec.model")
    if spec.alias:
        found += alias_violations(spec.alias, "spec.alias")
    if spec.sha256:
        found += hash_violations(spec.sha256, "spec.sha256")
    if spec.size_bytes > most_bytes:
        found.append(("spec.size_bytes", too_large(spec.size_bytes, most_bytes)))
    if found:
        raise invalid(found)


def too_large(size: int, most_bytes: int) -> str:
    """Returns what is wrong with a file that is too large."""
    return (
        f"the file has {size:,} bytes or more, and may have {most_bytes:,} here "
        "(--max-model-bytes of the server)"
    )


def vocabulary_config(spec: pb.StateDictSpec) -> tuple[TokenizerConfig, CorpusLayout]:
    """Returns the settings of the tokenizer of a PyTorch module.

    Raises:
        StatusError: INVALID_ARGUMENT with every field at fault.
    """
    found: list[Violation] = []
    layout = str(word_of(pb.CorpusLayout.DESCRIPTOR, spec.layout) if spec.layout else "text")
    if spec.layout not in pb.CorpusLayout.values():
        text = f"{layout} is no layout of the contract"
        found.append((f"{_STATE_DICT}.layout", text))
    if spec.tokenizer.kind == pb.TOKENIZER_KIND_SUBWORDS:
        text = "subwords cannot be imported: their merges are not in a vocabulary"
        found.append((f"{_STATE_DICT}.tokenizer.kind", text))
    values = to_json(spec.tokenizer)
    config: TokenizerConfig = build(
        lambda: TokenizerConfig.from_json(values),
        found,
        lambda field: f"{_STATE_DICT}.{field}",
    )
    return config, CorpusLayout(layout)


def needs_vocabulary(config: TokenizerConfig) -> bool:
    """Returns whether the tokens of a tokenizer are not known without a vocabulary."""
    return config.kind is not TokenizerKind.BYTES
