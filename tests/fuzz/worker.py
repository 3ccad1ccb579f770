"""A child process that tries cases one after the other: `python -m fuzz.worker KIND FIRST COUNT`.

It prints a seed before its case, so that an observer knows what ended the process, and after it
what is wrong, if anything is: one JSON value a line, a whole number or a text.
"""

from __future__ import annotations

import json
import resource
import sys
import traceback

from fuzz.cases import CASES
from fuzz.kept import kept_file

_MEMORY = 6 << 30
"""Bytes of address space: a file that asks for more has done harm."""


def main() -> None:
    kind = sys.argv[1]
    first = int(sys.argv[2])
    count = int(sys.argv[3])
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    run = kept_file if kind == "kept" else CASES[kind]
    for seed in range(first, first + count):
        print(seed, flush=True)
        try:
            run(seed)
        except Exception:
            print(json.dumps(traceback.format_exc()[-3000:]), flush=True)
    print(json.dumps(None), flush=True)


if __name__ == "__main__":
    main()
