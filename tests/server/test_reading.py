"""What a server makes of odd corpora: each is read, or refused in one sentence."""

from __future__ import annotations

import grpc
import pytest

from treadle.v1 import sequence_pb2 as pb

from .harness import Caller, Server, tiny_spec


def test_rows_without_text_are_left_out_where_that_is_asked_for(caller: Caller) -> None:
    spec = tiny_spec("rows")
    spec.data.format = pb.CORPUS_FORMAT_JSONL
    spec.data.missing = pb.MISSING_POLICY_SKIP
    corpus = b'{"text": "emma"}\n{"text": null}\n{"text": "ava"}\n'
    events = list(caller.train(spec, corpus))
    started = next(event.started for event in events if event.HasField("started"))
    assert "1 row left out: no text in 'text'" in started.notices
    assert events[-1].completed.name == "rows"


def test_a_line_that_is_nested_too_deeply_is_refused_in_a_sentence(server: Server) -> None:
    spec = tiny_spec("nested")
    spec.data.format = pb.CORPUS_FORMAT_JSONL
    corpus = b'{"text": "emma"}\n{"text": ' + b"[" * 400 + b"]" * 400 + b"}\n"
    with pytest.raises(grpc.RpcError) as caught:
        list(server.caller.train(spec, corpus))
    assert "line 2: nested too deeply" in (caught.value.details() or "")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "Traceback" not in server.log


def test_white_space_counts_words_and_ends_of_lines(caller: Caller) -> None:
    text = " no it was n't <unk> monday \n but while the <unk> did n't fall \n apart N \n"
    spec = tiny_spec("treebank")
    spec.tokenizer.kind = pb.TOKENIZER_KIND_WHITESPACE
    caller.trained(spec, text.encode() * 20)
    targets = len(text.split()) + text.count("\n")
    (score,) = caller.score("treebank", [text], context="\n").scores
    assert score.token_count == targets
    first = text[:30]
    second = text[30:]
    states = caller.score("treebank", [first], context="\n", return_states=True)
    rest = caller.score("treebank", [second], state=states.scores[0].state)
    assert states.scores[0].token_count + rest.scores[0].token_count == targets
    made = caller.text("treebank", prompt="no it", max_new_tokens=8, seed=1)
    assert len(made.split(" ")) > 1
