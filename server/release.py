"""`RELEASE` is the version of Treadle that runs; to look it up for each call would take long."""

from __future__ import annotations

from importlib.metadata import version

RELEASE = version("treadle")
