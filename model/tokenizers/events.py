"""Tokens that are the events of a log: runs of anything but white space.

A session is its events with one blank between them, whatever white space was there before, ends of
lines too: what is decoded is what was read but for that. Events are numbers or names, such as the
ids that a log parser gives to its templates (DeepLog, Du et al. 2017).
"""

from __future__ import annotations

import re
from typing import ClassVar

from treadle.model.tokenizers.whitespace import EVENT, WhitespaceTokenizer


class EventTokenizer(WhitespaceTokenizer):
    """One token an event; the end of a line is white space like any other."""

    piece: ClassVar[re.Pattern[str]] = EVENT
