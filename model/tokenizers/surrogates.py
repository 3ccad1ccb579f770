"""`handle_surrogates` applies a policy to lone surrogates, which a Python string can hold."""

from __future__ import annotations

import re

from treadle.model.enums import UnknownPolicy
from treadle.model.errors import UnknownSymbolError

REPLACEMENT = "\ufffd"
"""U+FFFD, which text shows in place of an unknown symbol."""

SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a UTF-16 pair. A Python string can hold one; no file and no request can."""


def handle_surrogates(text: str, policy: UnknownPolicy) -> str:
    """Returns a text without lone surrogates, so that UTF-8 can encode it.

    Args:
        text: Any text.
        policy: SKIP removes surrogates and UNKNOWN replaces each by U+FFFD.

    Raises:
        UnknownSymbolError: The text holds a surrogate and the policy is ERROR.
    """
    found = SURROGATE.search(text)
    if found is None:
        return text
    if policy is UnknownPolicy.ERROR:
        code = ord(found.group())
        position = found.start()
        raise UnknownSymbolError(
            f"a lone surrogate (U+{code:04X}) at position {position} (counted from 0) is not a "
            "character: take it out, or set unknown_policy to 'skip' or 'unknown'",
            found.group(),
            position,
        )
    return SURROGATE.sub("" if policy is UnknownPolicy.SKIP else REPLACEMENT, text)
