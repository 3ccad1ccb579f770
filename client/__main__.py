"""`python -m treadle.client` is the `treadle` command."""

import sys

from treadle.client.cli import main

if __name__ == "__main__":
    sys.exit(main())
