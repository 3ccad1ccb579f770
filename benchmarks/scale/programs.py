"""`find` finds a program that pip or the machine has installed."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path


def find(*names: str) -> str | None:
    """Returns the path of a program, from the environment that runs this if it is there.

    The environment need not be active, so that its programs may be missing in PATH.

    Args:
        names: What it may be called, the best name first.

    Returns:
        The path; None where no program of these names is installed.
    """
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = (shutil.which(name, path=folders) for name in names)
    return next(filter(None, found), None)
