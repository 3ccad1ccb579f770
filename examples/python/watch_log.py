"""Watch sessions of log events as they arrive: flag unusual ones, and learn from all.

python examples/python/watch_log.py [SESSIONS]

The program trains on yesterday's sessions, then reads SESSIONS: JSON lines with a field `events`,
from standard input for -, such as the output of `tail -f`. It prints each session with an event
that was not among the G likeliest ones at its position (DeepLog, Du et al. 2017). It learns from
every session, on a copy of the model that belongs to this stream, and stores the copy as a new
version. The server is $TREADLE_SERVER, by default one on this machine: start it with
`treadle-server`.
"""

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from treadle.client import Client, TreadleError

DATA = Path(__file__).parent.parent / "data"
G = 5


def main(lines: Iterable[str]) -> None:
    with Client(os.environ.get("TREADLE_SERVER", "127.0.0.1:50051")) as client:
        model = client.train(
            DATA / "events.jsonl",
            model="sessions",
            tokenizer="events",
            format="jsonl",
            column="events",
            hidden_size=32,
            max_steps=300,
        ).result()
        print(f"trained: {model.training.valid_loss:.3f} nats an event\n\nworst  nats  session")
        with client.open_learn_stream("sessions", ranks=True, learning_rate=0.3) as stream:
            for line in lines:
                session = json.loads(line)
                score = stream.learn(" ".join(session["events"]), end=True)
                worst = max(token.rank for token in score.tokens)
                if worst > G:
                    nats = -score.total_log_probability
                    print(f"{worst:5} {nats:5.1f}  {session['session']} {session['events']}")
            print(f"\n{stream.updates} updates, stored as", end=" ")
            learned = stream.publish(alias="learned")
            print(f"{learned.name} version {learned.version}")


if __name__ == "__main__":
    try:
        path = sys.argv[1] if len(sys.argv) > 1 else str(DATA / "events_today.jsonl")
        with sys.stdin if path == "-" else open(path, encoding="utf-8") as file:
            main(file)
    except TreadleError as error:
        sys.exit(f"watch_log.py: {error}")
