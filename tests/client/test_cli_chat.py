"""`treadle chat`, its lines piped in."""

from __future__ import annotations

from pathlib import Path

from google.rpc import code_pb2  # type: ignore[import-untyped]

from treadle.v1 import sequence_pb2 as v1

from .fake import FakeServer, FakeService, status
from .shell import complaint, out, run


def asked(service: FakeService) -> list[tuple[bytes, str]]:
    """What Generate calls went on from, and with which prompt."""
    made = [each for each in service.requests if isinstance(each, v1.GenerateRequest)]
    return [(request.state, request.prompt) for request in made]


def test_each_line_is_answered_from_all_that_was_said(
    server: FakeServer, service: FakeService
) -> None:
    words = ["chat", "m", "--temperature", "0.5", "--seed", "3", "--max-new-tokens", "9"]
    assert out(server.address, *words, data=b"h\nj\r\n") == "ello\nello\n"
    assert asked(service) == [
        (b"", "h\n"),
        (b"h\nello", "\n"),  # the stop that ended the reply is read before the next line
        (b"h\nello\n", "j\n"),
        (b"h\nello\nj\nello", "\n"),
    ]
    request = service.requests[1]
    assert (request.version, request.temperature, request.seed) == (2, 0.5, 3)
    assert (request.max_new_tokens, list(request.stop_sequences)) == (9, ["\n"])


def test_items_follow_each_other_as_they_are(server: FakeServer, service: FakeService) -> None:
    service.layout = v1.CORPUS_LAYOUT_LINES
    out(server.address, "chat", "m", "--stop", ";", "--stop", ",", data=b"h\nj\n")
    assert asked(service)[:3] == [(b"", "h"), (b"hello", ";"), (b"hello;", "j")]


def test_states_are_kept_and_come_back(
    server: FakeServer, service: FakeService, tmp_path: Path
) -> None:
    state = tmp_path / "one state"
    data = f"/save {state}\nh\n/save {state}\nj\n/load {state}\n//k\n/undo\n/undo\nl\n/quit\nm\n"
    done = run(server.address, "chat", "m", data=data.encode())
    assert done.returncode == 0
    assert done.stdout == b"ello\n" * 4
    said = done.stderr.decode().splitlines()
    assert said == ["nothing was typed yet: there is no state to save", f"7 bytes in {state}"]
    assert state.read_bytes() == b"h\nello\n"
    lines = [each for each in asked(service) if each[1] != "\n"]
    assert lines == [
        (b"", "h\n"),
        (b"h\nello\n", "j\n"),
        (b"h\nello\n", "/k\n"),
        (b"h\nello\nj\nello\n", "l\n"),
    ]
    service.requests.clear()
    out(server.address, "chat", "m", "--state", str(state), data=b"x\n")
    assert asked(service)[0] == (b"h\nello\n", "x\n")


def test_beginning_anew(server: FakeServer, service: FakeService) -> None:
    out(server.address, "chat", "m", data=b"h\n/reset\nj\n")
    assert (b"", "j\n") in asked(service)


def test_wrong_commands_are_reported_and_the_chat_continues(
    server: FakeServer, tmp_path: Path
) -> None:
    data = b"/sing\n/undo\n/load\n/load no/such\n/save\n/help\nh\n"
    done = run(server.address, "chat", "m", data=data)
    assert (done.returncode, done.stdout) == (0, b"ello\n")
    said = done.stderr.decode().splitlines()
    assert said[:5] == [
        "there is no /sing: /help lists what there is",
        "there is nothing to take back",
        "name a file: /load FILE",
        "cannot read no/such: No such file or directory",
        "name a file: /save FILE",
    ]
    assert said[5].startswith("/save FILE")


def test_a_refusal_leaves_the_memory_alone(server: FakeServer, service: FakeService) -> None:
    service.refusals = {"x\n": status(code_pb2.INVALID_ARGUMENT, "there is no 'x'")}
    done = run(server.address, "chat", "m", data=b"h\nx\nj\n")
    assert (done.returncode, done.stdout) == (0, b"ello\nello\n")
    assert done.stderr == b"there is no 'x'\n"
    assert (b"h\nello\n", "j\n") in asked(service)


def test_a_refusal_names_the_flag(server: FakeServer, service: FakeService) -> None:
    why = "'x' is unknown: take it out, or set unknown_policy to 'skip'"
    service.refusals = {"x\n": status(code_pb2.INVALID_ARGUMENT, why)}
    done = run(server.address, "chat", "m", data=b"x\n")
    assert done.stderr == b"'x' is unknown: take it out, or give --unknown skip\n"


def test_trouble_at_the_beginning_is_one_sentence(server: FakeServer, service: FakeService) -> None:
    done = run(server.address, "chat", "m", data=b"\xef\xbb\xbfh\n\xff\ni\r\n")
    assert "line 2 was skipped: it is not UTF-8: byte 0xFF at offset 0" in complaint(done, 0)
    prompts = [request.prompt for request in service.requests if hasattr(request, "prompt")]
    assert [prompt for prompt in prompts if prompt.strip()] == ["h\n", "i\n"]
    service.requests.clear()
    run(server.address, "chat", "m", "--encoding", "latin-1", data=b"\xfc\n")
    prompts = [request.prompt for request in service.requests if hasattr(request, "prompt")]
    assert "ü\n" in prompts
    service.failure = status(code_pb2.NOT_FOUND, "there is no model 'm'")
    assert "no model" in complaint(run(server.address, "chat", "m"), 1)
