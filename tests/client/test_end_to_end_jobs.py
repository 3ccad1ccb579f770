"""The three jobs of the README against the real server: a log, a generator, a user's memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from treadle.client import (
    Client,
    FailedPreconditionError,
    InvalidArgumentError,
    StreamPiece,
    read_lines,
)

from .shell import complaint, objects, out, run

DATA = Path(__file__).parents[2] / "examples" / "data"
NAMES = (DATA / "names.txt").read_text().split()[:400]
VERSE = "the cat sat on the mat\nthe dog sat on the log\n" * 40


@pytest.fixture(scope="module")
def trained(real_server: str) -> str:
    """A server that knows some names, with an index of them, and a verse; its address."""
    with Client(real_server) as client:
        client.train(
            "\n".join(NAMES),
            model="few-names",
            layout="lines",
            hidden_size=32,
            max_steps=150,
            novelty_index=True,
        ).result()
        client.train(VERSE, model="verse", hidden_size=32, max_steps=150).result()
    return real_server


class TestMemory:
    def test_a_state_goes_on_exactly(self, trained: str, tmp_path: Path) -> None:
        state = str(tmp_path / "state")
        words = ["generate", "verse", "--seed", "5", "--no-newline"]
        whole = out(trained, *words, "--prompt", "the ", "--max-new-tokens", "60")
        first = out(
            trained, *words, "--prompt", "the ", "--max-new-tokens", "23", "--save-state", state
        )
        rest = ["generate", "verse", "--no-newline", "--max-new-tokens", "37", "--state", state]
        assert len(first) == 23
        assert first + out(trained, *rest) == whole

    def test_a_session_is_what_one_call_would_be(self, trained: str) -> None:
        with Client(trained) as client:
            session = client.session("verse", temperature=0, max_new_tokens=10)
            session.read("the ")
            twin = session.fork()
            text = session.send() + session.send()
            assert text == client.generate_text("verse", "the ", temperature=0, max_new_tokens=20)
            kept = client.session("verse", state=twin.state, version=twin.version)
            assert kept.send(temperature=0, max_new_tokens=20) == text
            assert len(session.state) == len(twin.state) < 4096

    def test_a_wrong_state_is_refused(self, trained: str, tmp_path: Path) -> None:
        with Client(trained) as client:
            session = client.session("verse")
            session.read("the ")
            with pytest.raises(FailedPreconditionError, match="model"):
                client.generate_text("few-names", state=session.state)
            damaged = bytes([session.state[0] ^ 1]) + session.state[1:]
            with pytest.raises(InvalidArgumentError) as caught:
                client.generate_text("verse", state=damaged)
            assert [violation.field for violation in caught.value.violations] == ["state"]
        (tmp_path / "wrong").write_bytes(session.state)
        done = run(trained, "generate", "few-names", "--state", str(tmp_path / "wrong"))
        assert "model" in complaint(done, 1)

    def test_a_chat_is_the_text_itself(self, trained: str, tmp_path: Path) -> None:
        state = tmp_path / "state"
        lines = f"the cat\n/save {state}\nthe dog\n/undo\nthe dog\n"
        done = run(trained, "chat", "verse", "--temperature", "0", data=lines.encode())
        assert done.returncode == 0
        first, second, again = done.stdout.decode().splitlines()
        assert second == again
        assert first
        with Client(trained) as client:
            said = f"the cat\n{first}\nthe dog\n"
            stops = ["\n"]
            whole = client.generate_text("verse", said, temperature=0, stop_sequences=stops)
            assert whole == second
        words = ["chat", "verse", "--temperature", "0", "--state", str(state)]
        assert run(trained, *words, data=b"the dog\n").stdout.decode().splitlines() == [second]


class TestGenerator:
    def test_names_with_likelihoods(self, trained: str) -> None:
        words = ["generate", "few-names", "-n", "20", "--unique", "--with-likelihood", "--seed"]
        rows = [line.split("\t") for line in out(trained, *words, "7").splitlines()]
        assert len({name for name, _ in rows}) == 20
        assert out(trained, *words, "7").splitlines() == ["\t".join(row) for row in rows]
        with Client(trained) as client:
            scores = client.score("few-names", [name for name, _ in rows])
            assert [f"{score.total_log_probability:.3f}" for score in scores] == [
                nats for _, nats in rows
            ]

    def test_new_names(self, trained: str) -> None:
        words = ["generate", "few-names", "-n", "15", "--unique", "--novel", "--with-likelihood"]
        rows = [line.split("\t") for line in out(trained, *words, "--seed", "3").splitlines()]
        assert len(rows) == 15
        assert {new for _, _, new in rows} == {"new"}
        assert out(trained, "models", "show", "few-names").count("novelty index    yes\n") == 1
        with Client(trained) as client:
            texts = list(client.generate_many("few-names", n=100, novelty=True, seed=1))
        for text in texts:  # nine tenths of the names were trained on
            assert text.result.novelty.is_new or text.text in NAMES
        assert any(text.result.novelty.is_new for text in texts)

    def test_names_of_a_form(self, trained: str) -> None:
        lines = out(trained, "generate", "few-names", "-n", "8", "--regex", "mar[a-z]{2,4}")
        assert all(name.startswith("mar") and 5 <= len(name) <= 7 for name in lines.splitlines())
        best = out(trained, "generate", "few-names", "-n", "4", "--best-of", "8").splitlines()
        assert len(set(best)) == len(best) == 4


class TestLog:
    def test_a_stream_scores_what_a_text_does(self, trained: str, tmp_path: Path) -> None:
        log = tmp_path / "log"
        log.write_text(VERSE[:300])
        (whole,) = objects(out(trained, "score", "verse", str(log), "--json"))
        for per in ("line", "event", "chunk"):
            *rows, last = objects(
                out(trained, "score-stream", "verse", str(log), "--per", per, "--json")
            )
            total = last["total"]["total_log_probability"]
            assert total == whole["total_log_probability"]  # bit for bit
            assert -sum(row["nats"] for row in rows) == pytest.approx(total)
            assert last["total"]["token_count"] == whole["token_count"]

    def test_items_one_by_one(self, trained: str) -> None:
        names = ["emma", "olivia", "xqzj"]
        with Client(trained) as client:
            scores = [s.total_log_probability for s in client.score("few-names", names)]
            pieces = [StreamPiece(name, end=True) for name in names]
            with client.score_stream("few-names", pieces, ranks=True) as stream:
                found = list(stream)
            assert [score.whole.total_log_probability for score in found] == scores
            assert all(token.rank > 0 for score in found for token in score.tokens)

    def test_what_is_learnt_is_less_surprising(self, trained: str) -> None:
        words = ["score-stream", "few-names", "--learn", "--json", "--learning-rate"]
        rows = objects(out(trained, *words, "0.2", data=b"xqzj\n" * 20))
        assert rows[-1]["nats"] < 0.5 * rows[0]["nats"]
        still = objects(out(trained, *words, "0", data=b"xqzj\n" * 3))
        assert len({row["nats"] for row in still}) == 1
        done = run(trained, *words, "0.2", "--publish", "--publish-as", "odd", data=b"xqzj\n" * 20)
        assert done.stderr == b"treadle: published odd version 1\n"
        before, after = (
            objects(out(trained, "score", model, "--text", "xqzj", "--json"))[0]
            for model in ("few-names", "odd")
        )
        assert after["mean_nats"] < before["mean_nats"]

    def test_what_cannot_be_read_leaves_no_trace(self, trained: str, tmp_path: Path) -> None:
        good = ['{"text": "emma"}', '{"text": ["olivia"]}', '{"text": "ava"}']
        bad = ['{"te', '{"text": null}', '{"text": "emma#"}', '{"text": "%s#"}' % ("ab" * 99)]
        mixed = [bad[0], good[0], *bad, good[1], bad[3], good[2], bad[2]]
        words = ["score-stream", "few-names", "--format", "jsonl", "--json"]
        found = []
        for name, lines in (("good", good), ("mixed", mixed)):
            state = tmp_path / name
            data = "\n".join(lines).encode()
            done = run(trained, *words, "--save-state", str(state), data=data)
            *rows, total = objects(done.stdout.decode())
            scores = [row["total_log_probability"] for row in rows if "error" not in row]
            found.append((scores, total["total"], state.read_bytes()))
            assert (done.returncode, total["error_count"]) == (0, len(lines) - len(good))
        assert found[0] == found[1]
        learn = ["--learn", "--learning-rate", "0.2", "--publish", "--publish-as"]
        for name, lines in (("from-good", good), ("from-mixed", mixed)):
            assert (
                run(trained, *words, *learn, name, data="\n".join(lines).encode()).returncode == 0
            )
        first, second = (
            objects(out(trained, "score", name, "--text", "olivia", "--json"))
            for name in ("from-good", "from-mixed")
        )
        assert first == second

    def test_what_trained_can_be_scored_with_its_byte_order_mark(
        self, trained: str, tmp_path: Path
    ) -> None:
        path = tmp_path / "bom_names.txt"
        text = b"emma\r\nolivia\n\nava"
        path.write_bytes(b"\xef\xbb\xbf" + text)
        words = ["--layout", "lines", "--max-steps", "1", "--quiet"]
        out(trained, "train", str(path), "--model", "marked", *words)
        names = ["emma", "olivia", "ava"]
        with Client(trained) as client:
            scores = [s.total_log_probability for s in client.score("marked", names)]
            read = list(read_lines(path))
            assert [s.total_log_probability for s in client.score("marked", read)] == scores
        for file, data in ((str(path), b""), ("-", path.read_bytes())):
            for words in (
                ["score", "marked", file, "--per-line"],
                ["score-stream", "marked", file],
            ):
                rows = objects(out(trained, *words, "--json", data=data))[: len(names)]
                assert [row["total_log_probability"] for row in rows] == scores
            assert len(objects(out(trained, "embed", "marked", "--per-line", file, data=data))) == 3
            prompt = tmp_path / "prompt"
            prompt.write_bytes(b"\xef\xbb\xbfem")
            words = ["generate", "marked", "--prompt-file", str(prompt), "--max-new-tokens", "1"]
            out(trained, *words)

    def test_vectors(self, trained: str) -> None:
        with Client(trained) as client:
            first, second, again = client.embed("few-names", ["emma", "olivia", "emma"])
        assert len(first) == 32
        assert first == again != second
        assert all(-1 <= value <= 1 for value in first)
