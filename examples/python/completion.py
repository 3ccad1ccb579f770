"""Complete what each user writes; all that the service knows of a user is a file of theirs.

python examples/python/completion.py [FOLDER]

A recurrent model's whole memory of a text is a few kilobytes, the same for any length of text. The
server hands it out and keeps nothing: it lies in FOLDER (default: a temporary one), a file for each
user, and goes on with whichever client and server comes next. The server is the one at
$TREADLE_SERVER, or on this machine: start one with `treadle-server`.
"""

import os
import sys
import tempfile
from pathlib import Path

from treadle.client import Client, TreadleError

CORPUS = Path(__file__).parent.parent / "data" / "tinyshakespeare.txt"
ADDRESS = os.environ.get("TREADLE_SERVER", "127.0.0.1:50051")

WRITTEN = (
    ("anna", "ROMEO:\nWhat say you to "),
    ("ben", "KING HENRY:\nI will not "),
    ("anna", "\nJULIET:\nGood night, and "),
)


def complete(folder: Path, user: str, text: str, version: int) -> None:
    """Offers completions of what a user writes, and remembers what was written."""
    file = folder / f"{user}.state"
    with Client(ADDRESS) as client:  # a new connection each time: nothing is kept but the file
        state = file.read_bytes() if file.exists() else b""
        session = client.session("bard", state=state, version=version)
        session.read(text)
        file.write_bytes(session.state)
        print(f"{user} wrote {text!r}; {len(session.state):,} bytes remember it")
        for seed in (1, 2, 3):
            offered = session.fork().send(
                temperature=0.6, seed=seed, max_new_tokens=40, stop_sequences=[".", "\n"]
            )
            print(f"    ... {offered}")


def main(folder: Path) -> None:
    with Client(ADDRESS) as client:
        text = CORPUS.read_text(encoding="utf-8")[:200_000]
        model = client.train(text, model="bard", hidden_size=96, max_steps=200).result()
        print(f"trained: {model.training.valid_loss:.3f} nats a character\n")
    for user, text in WRITTEN:
        complete(folder, user, text, model.version)


if __name__ == "__main__":
    try:
        if len(sys.argv) > 1:
            main(Path(sys.argv[1]))
        else:
            with tempfile.TemporaryDirectory() as folder:
                main(Path(folder))
    except TreadleError as error:
        sys.exit(f"completion.py: {error}")
