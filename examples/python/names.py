"""Train on a list of names, generate new ones, and print how likely each is.

python examples/python/names.py [FILE]

FILE holds one item per line: names, molecule strings, part numbers. The server is
$TREADLE_SERVER, by default one on this machine: start it with `treadle-server`.
"""

import os
import sys
from pathlib import Path

from treadle.client import Client, TreadleError

NAMES = Path(__file__).parent.parent / "data" / "names.txt"


def main(path: Path) -> None:
    with Client(os.environ.get("TREADLE_SERVER", "127.0.0.1:50051")) as client:
        run = client.train(path, model="names", layout="lines", hidden_size=96, max_steps=400)
        for event in run:
            if event.progress.HasField("valid_loss"):
                progress = event.progress
                print(f"step {progress.step:4}  validation loss {progress.valid_loss:.3f} nats")

        known = set(path.read_text(encoding="utf-8").split())
        print("\nnats   generated")
        for seed in range(10):
            generation = client.generate("names", seed=seed, temperature=0.8)
            name = "".join(generation)
            nats = generation.result().total_log_probability
            print(f"{nats:6.2f} {name}{'  (in the list)' if name in known else ''}")

        print("\nnats   given")
        given = ["maria", "airam", "qqqqq"]
        for name, score in zip(given, client.score("names", given), strict=True):
            print(f"{score.total_log_probability:6.2f} {name}")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else NAMES)
    except TreadleError as error:
        sys.exit(f"names.py: {error}")
