"""Lets `python -m treadle.server` do what `treadle-server` does."""

from __future__ import annotations

import sys

from treadle.server.cli import main

if __name__ == "__main__":
    sys.exit(main())
