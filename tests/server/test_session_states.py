"""Session states under a key: who can use one, what it shows, and how keys change."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import random
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from small_models import model_of

from treadle.model import InferencePrecision, Model
from treadle.model.errors import StateError
from treadle.model.network.session_state import SessionState
from treadle.server.access.state_key_file import StateKeyFile
from treadle.server.access.state_sealer import MAGIC, OVERHEAD, StateSealer, state_keys
from treadle.server.config import ServerConfig, SettingError
from treadle.server.errors import StatusError
from treadle.server.messages.session_states import SessionStates

OLD = b"the secret of yesterday"
NEW = b"the secret of today"
OTHER = b"the secret of somebody else"

MODEL = model_of()
SAME_SHAPE = model_of(hidden_size=5)
LARGER = model_of(hidden_size=64)


def states(*secrets: bytes, caller: str = "") -> SessionStates:
    return SessionStates(StateSealer(state_keys(b"\n".join(secrets))), caller)


def state_of(model: Model = MODEL, text: str = "abc cab") -> SessionState:
    state = model.score(text).state
    assert state is not None
    return state


def refusal(reader: SessionStates, data: bytes, model: Model = MODEL) -> tuple[object, ...]:
    """All that a client learns of a state that is refused."""
    with pytest.raises(StatusError) as caught:
        reader.read(model, data, "state")
    return caught.value.code, caught.value.message, caught.value.packed()


def other_weights() -> Model:
    model = model_of()
    model.parameters.flat[0] += 1
    return model


def test_a_state_is_read_by_its_caller() -> None:
    for caller in ("", "ada", "x" * 100, "ä/b"):
        own = states(NEW, caller=caller)
        data = own.write(MODEL, state_of())
        read = own.read(MODEL, data, "state")
        assert read is not None
        assert MODEL.state_bytes(read) == MODEL.state_bytes(state_of())
    assert states(NEW).read(MODEL, b"", "state") is None


def test_a_state_remembers_its_precision_and_one_of_float32_is_as_ever() -> None:
    state = state_of()
    view = MODEL.at(InferencePrecision.INT8)
    moved = view.beginning(state)
    counted = replace(moved, counts=np.eye(2, MODEL.vocabulary_size, dtype=np.int32))
    versions = {}
    for model, each in ((MODEL, state), (view, moved), (view, counted)):
        data = model.state_bytes(each)
        versions[data[3]] = each.precision
        for reader in (MODEL, view):
            read = reader.read_state(data)
            assert read.precision is each.precision
            assert reader.beginning(read).precision is reader.precision
            assert model.state_bytes(read) == data
    fp32 = InferencePrecision.FP32
    assert versions == {1: fp32, 4: InferencePrecision.INT8, 5: InferencePrecision.INT8}
    with pytest.raises(StateError, match="another version of Treadle"):
        MODEL.read_state(with_version(MODEL.state_bytes(state), 6))


def with_version(data: bytes, version: int) -> bytes:
    """A state of another version, as a Treadle of that version would make it."""
    body = data[:3] + bytes([version]) + data[4:-16]
    return body + hashlib.sha256(body).digest()[:16]


def test_the_same_state_is_the_same_bytes() -> None:
    first = states(NEW, OLD, caller="ada").write(MODEL, state_of())
    assert states(NEW, caller="ada").write(MODEL, state_of()) == first
    assert states(NEW, caller="eve").write(MODEL, state_of()) != first
    assert states(NEW, caller="ada").write(MODEL, state_of(text="abc ca")) != first


def test_a_state_shows_its_version_its_key_and_its_length() -> None:
    plain = MODEL.state_bytes(state_of())
    data = states(NEW, caller="ada").write(MODEL, state_of())
    assert data[:8] == MAGIC + state_keys(NEW)[0].id
    assert len(data) == OVERHEAD + len(plain)
    inside = data[8:]
    for begin in range(len(plain) - 8):
        assert plain[begin : begin + 8] not in inside
    assert MODEL.content_hash[:8] not in inside
    # Nothing in common with the state after one character more, not even a prefix.
    later = states(NEW, caller="ada").write(MODEL, state_of(text="abc cab "))[8:]
    same = sum(a == b for a, b in zip(inside, later, strict=True))
    assert same < len(inside) / 4


def test_nobody_else_learns_why_a_state_is_refused() -> None:
    data = states(NEW, caller="ada").write(MODEL, state_of())
    forged = MAGIC + state_keys(NEW)[0].id + os.urandom(len(data) - 8)
    swapped = MAGIC + state_keys(OLD)[0].id + data[8:]
    other = states(NEW, caller="ada").write(MODEL, state_of(text="cab"))
    reader = states(NEW, OLD, caller="ada")
    attempts = [
        refusal(states(NEW, caller="eve"), data),
        refusal(states(NEW), data),
        refusal(states(OTHER, caller="ada"), data),
        refusal(states(NEW, caller="eve"), data, other_weights()),
        refusal(reader, forged),
        refusal(reader, swapped),
        refusal(reader, data[:-1]),
        refusal(reader, data[:9]),
        refusal(reader, MAGIC),
        refusal(reader, data + b"\0"),
        refusal(reader, data[:40] + other[40:]),
        refusal(reader, b"damaged"),
        refusal(states(NEW), MODEL.state_bytes(state_of())),
        refusal(states(NEW), MODEL.state_bytes(state_of(), OTHER)),
        refusal(states(NEW), b"damaged"),
    ]
    assert set(attempts) == {attempts[0]}
    code, message, _ = attempts[0]
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert isinstance(message, str)
    assert "ada" not in message


@pytest.mark.parametrize("seed", range(4))
def test_a_changed_state_is_refused(seed: int) -> None:
    source = random.Random(seed)
    data = states(NEW, caller="ada").write(MODEL, state_of())
    for _ in range(250):
        changed = bytearray(data)
        changed[source.randrange(len(data))] ^= 1 << source.randrange(8)
        assert refusal(states(NEW, caller="ada"), bytes(changed))[0] is (
            grpc.StatusCode.INVALID_ARGUMENT
        )


@pytest.mark.parametrize("seed", range(4))
def test_hostile_states_are_refused(seed: int) -> None:
    """Spliced, cut, made longer, and with a right head: nothing is taken that was not returned."""
    source = random.Random(seed)
    own = states(NEW, OLD, caller="ada")
    readers = [own, states(NEW, OLD), states(NEW, OLD, caller="eve"), states()]
    models = [MODEL, LARGER, other_weights()]
    whole = [own.write(model, state_of(model)) for model in models]
    whole += [MODEL.state_bytes(state_of(), secret) for secret in (NEW, OLD)]
    heads = [MAGIC + key.id for key in state_keys(NEW + b"\n" + OLD)]
    for _ in range(200):
        data = source.choice(whole)
        cut = source.randrange(len(data))
        other = source.choice(whole)
        attempts = [
            data[:cut],
            data + source.randbytes(source.choice((1, 16, 5000))),
            data[:cut] + other[cut:],
            source.choice(heads) + data[8:cut],
            source.choice(heads) + source.randbytes(len(data) - 8),
            source.randbytes(cut),
        ]
        for attempt in set(attempts) - set(whole) - {b""}:
            with pytest.raises(StatusError) as caught:
                source.choice(readers).read(source.choice(models), attempt, "state")
            assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT


def test_the_caller_learns_that_a_state_is_of_another_model() -> None:
    data = states(NEW, caller="ada").write(MODEL, state_of())
    code, message, _ = refusal(states(NEW, caller="ada"), data, other_weights())
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "name the model and version that returned it" in str(message)


def test_a_state_too_long_for_the_model_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*arguments: object) -> bytes:
        raise AssertionError("it was decrypted")

    most = SessionState.most_bytes(MODEL.trained.shape)
    data = states(NEW).write(LARGER, state_of(LARGER))
    assert len(data) <= OVERHEAD + SessionState.most_bytes(LARGER.trained.shape)
    assert len(data) > OVERHEAD + most
    monkeypatch.setattr(StateSealer, "open", opened)
    for reader in (states(NEW), states(NEW, caller="ada"), states()):
        assert "longer than any of this model" in str(refusal(reader, data)[1])
        assert "longer than any of this model" in str(refusal(reader, bytes(most + 25))[1])


def test_the_longest_state_is_as_long_as_is_said() -> None:
    for model in (MODEL, LARGER, model_of(layers=2)):
        assert len(model.state_bytes(state_of(model))) < SessionState.most_bytes(
            model.trained.shape
        )


# ---------------------------------------------------------------- states of earlier versions


def test_signed_states_are_read_where_nobody_has_a_name() -> None:
    signed = MODEL.state_bytes(state_of(), OLD)
    read = states(NEW, OLD).read(MODEL, signed, "state")
    assert read is not None
    assert MODEL.state_bytes(read) == MODEL.state_bytes(state_of())
    assert refusal(states(NEW, OLD), signed, other_weights())[0] is (
        grpc.StatusCode.FAILED_PRECONDITION
    )


def test_a_named_caller_cannot_use_a_signed_state() -> None:
    reader = states(NEW, OLD, caller="ada")
    valid = refusal(reader, MODEL.state_bytes(state_of(), OLD))
    assert valid == refusal(reader, MODEL.state_bytes(state_of(), OTHER))
    assert "did not encrypt states" in str(valid[1])


def test_a_server_without_a_key_says_so() -> None:
    data = states(NEW).write(MODEL, state_of())
    assert "has no key" in str(refusal(states(), data)[1])
    plain = states().write(MODEL, state_of())
    assert plain == MODEL.state_bytes(state_of())
    assert states().read(MODEL, plain, "state") is not None


# ---------------------------------------------------------------- keys


def test_the_first_key_writes_and_all_read() -> None:
    before = states(OLD, caller="ada").write(MODEL, state_of())
    both = states(NEW, OLD, caller="ada")
    assert both.read(MODEL, before, "state") is not None
    after = both.write(MODEL, state_of())
    assert after == states(NEW, caller="ada").write(MODEL, state_of())
    # On the other servers, the new key comes as a second one first.
    assert states(OLD, NEW, caller="ada").read(MODEL, after, "state") is not None
    refusal(states(NEW, caller="ada"), before)


def test_a_key_of_bytes_is_one_key() -> None:
    secret = bytes(range(256))
    assert b"\n" in secret
    (key,) = state_keys(secret)
    assert key.secret == secret
    assert state_keys(b"") == ()
    lines = b"  the first secret of all \r\n\n\tthe second secret of all\nthe first secret of all\n"
    assert [key.secret for key in state_keys(lines)] == [
        b"the first secret of all",
        b"the second secret of all",
    ]


def test_keys_that_cannot_be_are_refused_without_showing_them() -> None:
    with pytest.raises(SettingError, match="secret 2 has fewer than 16 bytes") as short:
        state_keys(NEW + b"\nhunter2\n")
    assert "hunter2" not in str(short.value)
    many = [hashlib.sha256(bytes([number])).hexdigest().encode() for number in range(33)]
    assert len(state_keys(b"\n".join(many[:32]))) == 32
    with pytest.raises(SettingError, match="33 secrets"):
        state_keys(b"\n".join(many))


def test_a_key_never_shows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "keys"
    file.write_bytes(NEW)
    file.chmod(0o600)
    config = ServerConfig(state_key_file=str(file))
    with caplog.at_level(logging.DEBUG):
        keys = StateKeyFile(config)
        file.write_bytes(OTHER + b"\n" + NEW)
        keys.reload()
        file.write_bytes(OTHER + b"\nhunter2")
        keys.reload()
    held = [*keys.sealer.keys, keys.sealer, keys, keys.sealer.keys, config]
    shown = "".join(map(repr, held)) + "".join(map(str, held)) + caplog.text
    for secret in (NEW, OTHER, b"hunter2"):
        assert secret.decode() not in shown
        assert secret.hex() not in shown


def test_a_changed_file_is_followed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "keys"

    def put(data: bytes) -> None:
        fresh = tmp_path / "fresh"
        fresh.write_bytes(data)
        fresh.chmod(0o600)
        fresh.replace(file)

    put(OLD)
    keys = StateKeyFile(ServerConfig(state_key_file=str(file)))
    own = SessionStates(keys.sealer, "ada")
    before = own.write(MODEL, state_of())

    async def until_it_writes(other: SessionStates) -> None:
        while own.write(MODEL, state_of()) != other.write(MODEL, state_of()):
            await asyncio.sleep(0.01)

    async def run() -> None:
        following = asyncio.create_task(keys._watch.follow(keys.reload, 0.01))
        put(NEW + b"\n" + OLD)
        await until_it_writes(states(NEW, caller="ada"))
        assert own.read(MODEL, before, "state") is not None
        put(b"short")
        while "stay in use" not in caplog.text:
            await asyncio.sleep(0.01)
        file.unlink()
        while caplog.text.count("stay in use") < 2:
            await asyncio.sleep(0.01)
        assert own.write(MODEL, state_of()) == states(NEW, caller="ada").write(MODEL, state_of())
        assert own.read(MODEL, before, "state") is not None
        put(OTHER)
        await until_it_writes(states(OTHER, caller="ada"))
        refusal(own, before)
        following.cancel()

    asyncio.run(asyncio.wait_for(run(), 60))
