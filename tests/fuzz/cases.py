"""`CASES` holds what is tried, one case per seed. A case ends well, or in an error for the caller.

Everything else is a fault: an exception that the server would call INTERNAL, and what the watcher
in `campaign` sees, which is a signal or no end.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from treadle.model.config import (
    DataConfig,
    LimitsConfig,
    NetworkConfig,
    OptimizerConfig,
    ReportConfig,
    TokenizerConfig,
    TrainConfig,
)
from treadle.model.data.corpus import Corpus, CorpusFile, read_corpus
from treadle.model.enums import (
    CorpusFormat,
    CorpusLayout,
    MissingPolicy,
    OptimizerKind,
    TokenizerKind,
    UnknownPolicy,
)
from treadle.model.errors import ModelError
from treadle.model.generation.constraint import compile_constraint
from treadle.model.generation.novelty import NAMES, NoveltyIndex
from treadle.model.generation.regex_automaton import QUICK, compile_automaton
from treadle.model.model import Model
from treadle.model.network.session_state import _HEAD, SessionState
from treadle.model.training import checkpoint
from treadle.model.training.baseline import baseline
from treadle.model.training.trainer import Trainer
from treadle.server.access.state_sealer import StateSealer, state_keys
from treadle.server.errors import StatusError, from_exception
from treadle.server.messages.session_states import SessionStates

from . import credentials, data_dirs, subjects
from .mutate import Mutator

_TAG = 16
_KEY = b"k" * 32


class Fault(Exception):  # noqa: N818 - not an error that is handled: what a campaign looks for
    """A case that ended as none may."""


def check(error: BaseException) -> None:
    """Checks that an error means something to a caller.

    Raises:
        Fault: It is not one of ours: the server would answer INTERNAL.
    """
    if not isinstance(error, ModelError):
        raise Fault(f"{type(error).__module__}.{type(error).__name__}: {error}") from error
    status = from_exception(error, "a fuzz", field="a_field")
    status.packed()
    if status.code.name in ("INTERNAL", "UNKNOWN"):
        raise Fault(f"{status.code.name}: {error}") from error


def attempt(work: Callable[[], Any]) -> Any:
    """Returns what something returns; None where it ends in an error that may be."""
    try:
        return work()
    except Fault:
        raise
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        check(error)
        return None


# Model files


@cache
def stored_files() -> tuple[bytes, ...]:
    """The models as files."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        made = []
        for model in subjects.models():
            model.save(path)
            assert Model.load(path).content_hash == model.content_hash  # as it is, it is taken
            made.append(path.read_bytes())
        return tuple(made)


def _rebuilt(header: str, data: bytes) -> bytes:
    encoded = header.encode(errors="surrogatepass")
    return len(encoded).to_bytes(8, "little") + encoded + data


def _odd_weights(draw: Mutator, data: bytes) -> bytes:
    """Numbers overwritten by such as no training makes."""
    numbers = np.frombuffer(data[: len(data) // 4 * 4], np.float32).copy()
    odd = np.array([3e38, -3e38, 1e-42, 1e19, -0.0, 100.0], np.float32)
    if not draw.random.randrange(3):
        odd = np.append(odd, np.array([np.nan, np.inf, -np.inf], np.float32))
    share = draw.random.choice((1, 3, max(1, numbers.size // 2), numbers.size))
    places = [draw.random.randrange(max(1, numbers.size)) for _ in range(share)]
    kinds = odd[[draw.random.randrange(odd.size)]] if draw.random.randrange(2) else odd
    if numbers.size:
        numbers[places] = [kinds[draw.random.randrange(kinds.size)] for _ in places]
    return numbers.tobytes() + data[numbers.nbytes :]


def _odd_index(draw: Mutator, header: dict[str, Any], data: bytes) -> bytes:
    """A novelty index of legal numbers in no order; other weights where a model has no index."""
    if NAMES[0] not in header:
        return _odd_weights(draw, data)
    out = bytearray(data)
    kinds: dict[str, Any] = {"U8": np.uint8, "U16": np.uint16, "I32": np.int32}
    for name in NAMES:
        begin, end = header[name]["data_offsets"]
        kind = kinds[header[name]["dtype"]]
        numbers = np.frombuffer(data[begin:end], kind).copy()
        for _ in range(draw.random.choice((1, 5, numbers.size))):
            one, other = (draw.random.randrange(numbers.size) for _ in range(2))
            numbers[one] = numbers[other]
        out[begin:end] = numbers.tobytes()
    return bytes(out)


def damaged_file(draw: Mutator, whole: bytes) -> bytes:
    """Returns a model file with a few changes somewhere."""
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + size])
    data = whole[8 + size :]
    times = draw.random.choice((1, 1, 2, 4))
    choice = draw.random.randrange(12)
    if choice == 0:
        return draw.bytes(whole, times)
    if choice == 1:
        return _rebuilt(json.dumps(header), draw.bytes(data, times))
    if choice == 9:
        return _rebuilt(json.dumps(header), _odd_index(draw, header, data))
    if choice in (2, 10):
        return _rebuilt(json.dumps(header), _odd_weights(draw, data))
    if choice == 3:
        return whole[:8] + draw.bytes(whole[8 : 8 + size], times) + data
    if choice == 4:
        tensors = {name: header[name] for name in header if name != "__metadata__"}
        changed = draw.json(tensors, times)
        if isinstance(changed, dict):
            changed["__metadata__"] = header["__metadata__"]
        return _rebuilt(draw.dumped(changed), data)
    inner = json.loads(header["__metadata__"]["treadle"])
    subwords = isinstance(inner["tokenizer"], dict) and "subwords" in inner["tokenizer"]
    if choice in (5, 6) and subwords:
        learned = json.loads(inner["tokenizer"]["subwords"])
        changed = draw.json(learned, times)
        inner["tokenizer"]["subwords"] = draw.dumped(changed)
    elif choice == 6:
        inner["tokenizer"] = draw.json(inner["tokenizer"], times)
    else:
        inner = draw.json(inner, times)
    header["__metadata__"]["treadle"] = draw.dumped(inner)
    return _rebuilt(json.dumps(header), data)


def model_file(seed: int) -> None:
    """A damaged model file is refused, or served like any other."""
    draw = Mutator(seed)
    use_model_file(damaged_file(draw, draw.random.choice(stored_files())), draw)


def use_model_file(data: bytes, draw: Mutator) -> None:
    """Does with a model file all that a server does with it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        path.write_bytes(data)
        attempt(lambda: subjects.describe(path))
        model = attempt(lambda: Model.load(path))
        if model is None:
            return
        for name, use in subjects.USES.items():
            if name == "train" and draw.random.randrange(6):
                continue
            attempt(lambda use=use: use(model, draw))  # type: ignore[misc]
        attempt(lambda: model.save(path))


# States


@cache
def _states() -> tuple[tuple[Model, SessionState], ...]:
    return tuple(
        (model, subjects.state_of(model, Mutator(2 * number + again)))
        for number, model in enumerate(subjects.models())
        for again in range(2)
    )


def _tagged(body: bytes, key: bytes) -> bytes:
    if key:
        return body + hmac.digest(key, body, "sha256")[:_TAG]
    return body + hashlib.sha256(body).digest()[:_TAG]


def _odd_state(draw: Mutator, body: bytes, model: Model) -> bytes:
    """The bytes of a state with one of its fields changed."""
    head = list(_HEAD.unpack(body[: _HEAD.size]))
    field = draw.random.randrange(9)
    numbers = bytearray(body[_HEAD.size :])
    V = model.vocabulary_size
    if field == 0:
        head[0] = draw.random.choice((*(b"TRS" + bytes([n]) for n in range(1, 6)), bytes(4)))
    elif field == 1:
        head[1] = draw.random.randbytes(16)
    elif field == 2:
        head[2] = not head[2]
    elif field in (3, 4):
        head[field] = draw.random.choice((0, 1, 2**31, 2**62, 2**63 - 1, 2**63, 2**64 - 1))
    elif field == 5:
        head[5] = draw.random.choice((-1, -2, 0, V - 1, V, V + 1, 2**31 - 1, -(2**31)))
    elif field == 6:
        head[6] = draw.random.randrange(256)
        head[7] = draw.random.randbytes(7)
    elif field == 7 and numbers:
        shape = model.parameters.shape
        floats = min(len(numbers) // 4, shape.L * shape.H * 2)
        odd = np.array([np.nan, np.inf, -np.inf, 3e38, 2.0, -1.5, 1e-42], "<f4")
        at = 4 * draw.random.randrange(max(1, floats))
        numbers[at : at + 4] = odd[[draw.random.randrange(odd.size)]].tobytes()
    else:
        arrays = 2 if model.network.cell == "lstm" else 1
        shape = model.parameters.shape
        start = 4 * arrays * shape.L * shape.H
        numbers[start:] = draw.bytes(bytes(numbers[start:]), draw.random.choice((1, 2, 5)))
        head[0] = draw.random.choice((head[0], b"TRS\x02", b"TRS\x05"))
    return _HEAD.pack(*head) + bytes(numbers)


def state(seed: int) -> None:
    """A damaged state is refused; one that was made again by who knows the key harms nobody."""
    draw = Mutator(seed)
    model, begun = draw.random.choice(_states())
    key = draw.random.choice((b"", _KEY))
    whole = model.state_bytes(begun, key)
    assert model.read_state(whole, key).token == begun.token  # as it is, it is taken
    knows_key = draw.random.randrange(4) > 0
    body = whole[:-_TAG]
    if draw.random.randrange(2):
        changed = _odd_state(draw, body, model)
    else:
        changed = draw.bytes(body, draw.random.choice((1, 1, 2, 4)))
    if knows_key:
        data = _tagged(changed, key)
    else:
        data = changed + whole[-_TAG:]
        if draw.random.randrange(2):
            data = draw.bytes(whole)
    if data == whole:
        return
    taken = attempt(lambda: model.read_state(data, key))
    if taken is None:
        return
    if not knows_key:
        raise Fault("a state was taken whose tag is not that of its bytes")
    if not (subjects.finite(taken.hs) and subjects.finite(taken.cs)):
        raise Fault("a state was taken that holds what is no number")
    attempt(lambda: subjects.generate(model, draw, taken))
    attempt(lambda: subjects.score(model, draw, taken))
    again = attempt(lambda: model.state_bytes(taken, key))
    if again is not None and attempt(lambda: model.read_state(again, key)) is None:
        raise Fault("a state that was taken is not taken a second time")


_SEALER = StateSealer(state_keys(b"a secret of sixteen\nanother, older secret"))
_OLDER = StateSealer(_SEALER.keys[1:])


def sealed_state(seed: int) -> None:
    """A sealed state is read by its caller alone, whatever was done to its bytes."""
    draw = Mutator(seed)
    pick = draw.random
    model, begun = pick.choice(_states())
    sealer = pick.choice((_SEALER, _OLDER))
    owner = pick.choice(("ann", "bob", ""))
    whole = SessionStates(sealer, owner).write(model, begun)
    read = SessionStates(_SEALER, owner).read(model, whole, "state")
    assert read is not None  # as it is, it is taken
    assert read.token == begun.token
    caller = pick.choice((owner, owner, "ann", "bob", "", "ann\0"))
    if pick.randrange(3):
        changed = draw.bytes(whole, pick.choice((1, 1, 3)))
        legal = changed == whole and caller == owner
    else:  # who knows the key may seal anything
        body = _odd_state(draw, model.state_bytes(begun)[:-_TAG], model)
        changed = sealer.seal(_tagged(body, b""), owner)
        legal = caller == owner
    try:
        taken = SessionStates(_SEALER, caller).read(model, changed, "state")
    except StatusError as error:
        status = error.code.name
        if status not in ("INVALID_ARGUMENT", "FAILED_PRECONDITION"):
            raise Fault(f"{status}: {error}") from error
        return
    if taken is None:
        return
    if not legal:
        raise Fault("a state was taken that was not sealed for its caller")
    if not (subjects.finite(taken.hs) and subjects.finite(taken.cs)):
        raise Fault("a state was taken that holds what is no number")
    attempt(lambda: subjects.score(model, draw, taken))


# Saved runs


@cache
def _saved() -> tuple[tuple[Corpus, TrainConfig, checkpoint.Checkpoint], ...]:
    """Runs of a few steps, as they are saved; each has its corpus."""
    made = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state"
        for number, layout in enumerate(CorpusLayout):
            config = TrainConfig(
                network=NetworkConfig(
                    hidden_size=4, layers=1 + number, embedding_size=3, dropout=0.5 * number
                ),
                data=DataConfig(layout, batch_size=2, window=4),
                optimizer=OptimizerConfig(kind=list(OptimizerKind)[2 - number]),
                limits=LimitsConfig(max_steps=6),
                report=ReportConfig(sample_tokens=2, validation_interval_steps=2),
            )
            corpus = read_corpus((subjects.TEXT * 4).encode(), config.tokenizer, config.data)
            trainer = Trainer(corpus, config)
            for _ in trainer.run(between=lambda trainer=trainer: trainer.steps == 3):  # type: ignore[misc]
                pass
            trainer.save_state(path)
            saved = checkpoint.read(path)
            assert saved is not None
            assert Trainer(corpus, config).restore_state(path)  # as it is, it is taken
            made.append((corpus, config, saved))
    return tuple(made)


def saved_run(seed: int) -> None:
    """A saved run of which something was changed, its hash made again, is refused or continued."""
    draw = Mutator(seed)
    corpus, config, saved = draw.random.choice(_saved())
    content = dict(saved.content)
    tensors = dict(saved.tensors)
    if draw.random.randrange(3):
        own = {name: content.pop(name) for name in ("config", "corpus")}
        changed = draw.json(content, draw.random.choice((1, 1, 3)))
        content = (changed if isinstance(changed, dict) else {}) | own
    else:
        name = draw.random.choice(list(tensors))
        tensors[name] = draw.random.choice(
            (
                tensors[name][:-1],
                tensors[name].reshape(-1)[:1],
                np.full_like(tensors[name], np.nan),
                np.append(tensors[name], tensors[name]).astype(np.float32),
                tensors[name] * np.float32(1e30),
            )
        )
    trainer = Trainer(corpus, config)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state"
        try:
            checkpoint.write(path, checkpoint.Checkpoint(content, tensors))
        except UnicodeEncodeError:
            return
        if attempt(lambda: trainer.restore_state(path)) is None:
            return
    left = iter((False,) * 8 + (True,) * 10**6)
    attempt(lambda: list(trainer.run(between=lambda: next(left))))
    attempt(trainer.finish)


# Corpora


PIECES = (
    b"abc",
    b"\n",
    b"\r\n",
    b"\r",
    b",",
    b'"',
    b'""',
    b"text",
    b'{"text": "abc"}',
    b'{"text": null}',
    b'{"text": ["a", ["b"]]}',
    b"\xff",
    b"\x00",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b'{"text": "\\ud800"}',
    b"sep=;",
    b";",
    b"\t",
    b"|",
    b" ",
    "é".encode(),
    "𐍈".encode(),
    b"{" * 200,
    b"[" * 200,
    b"1e999",
    b"text,other\na,b\n",
    b"a" * 5000,
    b"\x85",
    b"\xe2\x80\xa8",
)


def corpus(seed: int) -> None:
    """A corpus of any bytes is refused, or gives tokens of its vocabulary."""
    draw = Mutator(seed)
    pick = draw.random
    data = b"".join(pick.choices(PIECES, k=pick.randrange(1, 60)))
    if pick.randrange(2):
        data = draw.bytes(data, pick.randrange(1, 6))
    settings = TokenizerConfig(
        pick.choice(list(TokenizerKind)),
        pick.choice((1, 3, 256, 300)),
        pick.choice((None, *UnknownPolicy)),
        pick.choice((1, 2)),
        pick.random() < 0.3,
    )
    cut = DataConfig(
        layout=pick.choice(list(CorpusLayout)),
        format=pick.choice(list(CorpusFormat)),
        missing=pick.choice(list(MissingPolicy)),
        encoding=pick.choice(("utf-8", "utf-16", "latin-1", "utf-8-sig", "ascii", "idna", "hex")),
        validation_fraction=pick.choice((0.0, 0.1, 0.5)),
    )
    use_corpus(data, settings, cut, seed)


def use_corpus(data: bytes, settings: TokenizerConfig, cut: DataConfig, seed: int) -> None:
    """Reads a corpus, and does with it what a run does before it trains."""
    read = attempt(lambda: read_corpus([CorpusFile(data)], settings, cut, seed))
    if read is None:
        return
    V = read.tokenizer.vocabulary_size
    for part in (read.train, read.valid):
        if part is not None and part.tokens.size and int(part.tokens.max()) >= V:
            raise Fault("a token is not in the vocabulary")
    attempt(lambda: baseline(read))
    train = read.train
    attempt(lambda: NoveltyIndex.build(train.tokens, train.offsets, read.tokenizer))


# Regular expressions


SYMBOLS = (
    "a",
    "b",
    "c",
    " ",
    ".",
    "*",
    "+",
    "?",
    "(",
    ")",
    "[",
    "]",
    "{2}",
    "{1,3}",
    "{0}",
    "|",
    "\\d",
    "\\w",
    "\\pL",
    "^",
    "$",
    "\\",
    "[^a]",
    "[a-c]",
    "(?i)",
    "(?x)",
    "#",
    "\n",
    "é",
    "\\u{10FFFF}",
    "(?:",
    "(?P<n>",
    "&&",
    "--",
    "\\x",
    "\ud800",
    "\0",
    "{",
    "}",
    "-",
    "[[:alpha:]]",
    "\\b",
    "(?=",
)


def expression(seed: int) -> None:
    """A regular expression of any symbols is refused, or constrains what is generated."""
    draw = Mutator(seed)
    pick = draw.random
    use_expression("".join(pick.choices(SYMBOLS, k=pick.randrange(1, 12))), draw)


def use_expression(regex: str, draw: Mutator) -> None:
    """Compiles an expression, and generates with it."""
    pick = draw.random
    if attempt(lambda: compile_automaton(regex, QUICK)) is None:
        return
    model = pick.choice(subjects.models())
    if attempt(lambda: compile_constraint(regex, model.tokenizer, QUICK)) is None:
        return
    attempt(lambda: model.generate("", regex=regex, seed=1, max_new_tokens=6))


CASES: dict[str, Callable[[int], None]] = {
    "model_file": model_file,
    "state": state,
    "sealed_state": sealed_state,
    "saved_run": saved_run,
    "corpus": corpus,
    "expression": expression,
    **data_dirs.CASES,
    **credentials.CASES,
}
