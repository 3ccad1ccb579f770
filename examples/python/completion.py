"""Complete the text of each user, with a memory in a separate file for each.

python examples/python/completion.py [FOLDER]

A recurrent model remembers a text of any length in a few kilobytes. The server returns this state
and stores none of it. The program keeps a file for each user in FOLDER (default: a temporary one);
any client and server can continue from it. The server is $TREADLE_SERVER, by default one on this
machine: start it with `treadle-server`.
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
    """Prints completions of a user's text, and stores the memory of the text."""
    file = folder / f"{user}.state"
    with Client(ADDRESS) as client:  # a new connection each time: only the file remains
        state = file.read_bytes() if file.exists() else b""
        session = client.session("bard", state=state, version=version)
        session.read(text)
        file.write_bytes(session.state)
        print(f"{user} wrote {text!r}; {len(session.state):,} bytes remember it")
        for seed in (1, 2, 3):
            completion = session.fork().send(
                temperature=0.6, seed=seed, max_new_tokens=40, stop_sequences=[".", "\n"]
            )
            print(f"    ... {completion}")


def main(folder: Path) -> None:
    with Client(ADDRESS) as client:
        text = CORPUS.read_text(encoding="utf-8")[:200_000]
        model = client.train(text, model="bard", hidden_size=96, max_steps=200).result()
        print(f"trained: {model.training.valid_loss:.3f} nats per character\n")
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
