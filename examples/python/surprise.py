"""Find the lines of a log that are least like the others.

python examples/python/surprise.py [LOG]

The program trains on the log itself: frequent lines become expected, and rare lines stay
surprising, in bits per character. Lines are scored without their time stamps, which would be
surprising each time. The server is $TREADLE_SERVER, by default one on this machine: start it
with `treadle-server`.
"""

import os
import re
import sys
from pathlib import Path

from treadle.client import Client, TreadleError

LOG = Path(__file__).parent / "service.log"
TIME = re.compile(r"^\d\d:\d\d:\d\d ")
SHOWN = 6


def main(path: Path) -> None:
    log = path.read_text(encoding="utf-8", errors="replace").splitlines()
    lines = [line for line in (TIME.sub("", each) for each in log) if line]
    with Client(os.environ.get("TREADLE_SERVER", "127.0.0.1:50051")) as client:
        model = client.train(
            "\n".join(lines),
            model="log",
            layout="lines",
            cell="gru",
            hidden_size=64,
            validation_fraction=0,
            max_epochs=30,
        ).result()
        print(f"trained on {len(lines)} lines, {model.training.steps} steps\n")
        scored = zip(lines, client.score("log", lines), strict=True)
        ranked = sorted(scored, key=lambda pair: pair[1].bits_per_character, reverse=True)
    print("bits per character")
    for line, score in ranked[:SHOWN]:
        print(f"{score.bits_per_character:6.2f}  {line}")
    middle = ranked[len(ranked) // 2]
    print(f"...\n{middle[1].bits_per_character:6.2f}  {middle[0]}    (the median)")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else LOG)
    except TreadleError as error:
        sys.exit(f"surprise.py: {error}")
