"""Lets `python -m treadle.benchmarks` do what `treadle-bench` does."""

from __future__ import annotations

import sys

from treadle.benchmarks.cli import main

if __name__ == "__main__":
    sys.exit(main())
