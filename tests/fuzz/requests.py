"""`draw_call` draws one call of the service from a seed: its method, its messages, its end."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from treadle.server.rpc.servicer import SERVICE
from treadle.v1 import sequence_pb2 as pb

from .cases import PIECES, SYMBOLS, damaged_file, stored_files
from .metadata import Metadata, odd_metadata
from .mutate import Mutator
from .wire import damaged_wire, random_wire

METHODS: dict[str, Any] = dict(descriptor_pool.Default().FindServiceByName(SERVICE).methods_by_name)
"""Every method of the service, by its name."""

FOLLOWING = ("Train", "WatchJob")
"""Methods that last for as long as a job does."""

MADE = ("new", "trained-0", "trained-1", "trained-2", "none")
"""Names of models that requests make and delete."""

_WEIGHTS = {"Generate": 6, "Score": 4, "ScoreStream": 4, "LearnStream": 4, "Embed": 3, "Train": 3}
_DRAWN = [name for name in METHODS for _ in range(_WEIGHTS.get(name, 2))]

_UINTS = (0, 1, 2, 3, 16, 20, 21, 64, 65, 256, 257, 1024, 4096, 4097, 10**6, 2**31, 2**32 - 1)
_ULONGS = (*_UINTS, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1)
_INTS = (0, 1, -1, 2**31 - 1, -(2**31))
_DOUBLES = (
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    0.05,
    100.0,
    100.5,
    5e-324,
    1e-9,
    1e300,
    -1e300,
    float("nan"),
    float("inf"),
    float("-inf"),
)
_TEXTS = (
    "",
    " ",
    "a",
    "abc cab bca, a cab abc!",
    "ab\nca bc\n",
    "\0",
    "\x7f\x1b[31m",
    "\r\n\u2028\u0085",
    "\ufeffa",
    "é",
    "e\u0301" * 50,
    "\u202eabc",
    "\U0010ffff",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467",
    "abc " * 300,
    "x" * 5000,
    "../../etc/passwd",
    "a/b",
    "%s%n{0}",
    "<unk>",
    "'; DROP TABLE jobs; --",
    "latest",
    "0",
)
_ENCODINGS = (
    "utf-8",
    "latin-1",
    "utf-16",
    "UTF_7",
    "idna",
    "punycode",
    "hex",
    "rot13",
    "zlib",
    "unicode_escape",
    "raw_unicode_escape",
    "undefined",
    "mbcs",
    "cp037",
    "big5",
    "a" * 300,
    "../x",
    "\0",
)


@dataclass
class Known:
    """What exists on the server, for requests to name."""

    models: list[str]
    """Names of models that no call deletes."""
    jobs: list[str]
    """Ids of jobs."""
    states: list[bytes]
    """States that these models have made."""
    corpora: list[str]
    """Hashes of stored corpora."""
    tokens: list[str] = field(default_factory=list)
    """Tokens of pages."""


@dataclass(frozen=True)
class DrawnCall:
    """A call to make."""

    seed: int
    method: str
    """A method of the service."""
    messages: tuple[bytes, ...]
    """What is sent, one after the other: not always as many as the method takes."""
    half_closes: bool
    """Whether the caller says that nothing more comes; else it leaves after a while."""
    leaves_s: float | None
    """Seconds after which the caller leaves whatever has come; None: it waits."""
    metadata: Metadata = ()
    """What is sent besides."""


def draw_call(seed: int, known: Known, raw: bool) -> DrawnCall:
    """Returns the call of a seed.

    Args:
        seed: The seed.
        known: What exists.
        raw: Whether the messages are damaged as bytes.
    """
    draw = Mutator(seed)
    pick = draw.random
    method = pick.choice(_DRAWN)
    drawer = _Drawer(draw, known)
    messages = [message.SerializeToString() for message in drawer.messages(method)]
    if raw:
        if messages and pick.randrange(4):
            place = pick.randrange(len(messages))
            messages[place] = damaged_wire(draw, messages[place])
        else:
            messages = [random_wire(pick)]
    if pick.randrange(40) == 0:
        messages = pick.choice(([], messages * 2, [*messages, b""]))
    leaves_s = pick.choice((0.0, 0.001, 0.01, 0.1)) if pick.randrange(25) == 0 else None
    half_closes = pick.randrange(40) > 0
    metadata = odd_metadata(pick)
    return DrawnCall(seed, method, tuple(messages), half_closes, leaves_s, metadata)


def _without_metadata(file: bytes) -> bytes:
    """Returns a model's file as PyTorch would have saved its weights; a damaged one as it is."""
    size = int.from_bytes(file[:8], "little")
    try:
        header = json.loads(file[8 : 8 + size])
        del header["__metadata__"]
    except (ValueError, KeyError, TypeError):
        return file
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + file[8 + size :]


class _Drawer:
    def __init__(self, draw: Mutator, known: Known) -> None:
        self._draw = draw
        self._pick = draw.random
        self._known = known
        self._deletes = False

    def messages(self, method: str) -> list[Message]:
        """Returns the messages of a call, of which at least one is odd in most calls."""
        kind = METHODS[method].input_type
        # Requests must not delete what other requests name.
        self._deletes = method.startswith("Delete")
        if method == "Train":
            messages = self._upload()
        elif method in ("ScoreStream", "LearnStream"):
            messages = self._stream(method)
        elif method == "ImportModel":
            messages = self._import()
        else:
            messages = [self._likely(kind)]
        pick = self._pick
        if pick.randrange(20) == 0:
            return [self._any(kind) for _ in range(pick.choice((1, 1, 2, 5)))]
        for _ in range(pick.choice((0, 1, 1, 1, 2, 4))):
            self._spoil(pick.choice(messages))
        if len(messages) > 1 and pick.randrange(6) == 0:
            pick.shuffle(messages)
        return messages

    # Requests that may well succeed

    def _likely(self, kind: Descriptor) -> Any:
        """Returns a message with the fields that it needs and a few others."""
        message: Any = GetMessageClass(kind)()
        pick = self._pick
        likely = _LIKELY.get(kind.name, {})
        for name, (share, values) in likely.items():
            if pick.random() >= share:
                continue
            value = values(self) if callable(values) else pick.choice(values)
            holder = getattr(message, name, None)
            if kind.fields_by_name[name].is_repeated:
                holder.extend(value)  # type: ignore[union-attr]
            elif isinstance(value, Message):
                holder.CopyFrom(value)  # type: ignore[union-attr]
            else:
                setattr(message, name, value)
        return message

    def _upload(self) -> list[Any]:
        pick = self._pick
        messages = [pb.TrainRequest(spec=self._likely(pb.TrainSpec.DESCRIPTOR))]
        size = 0
        for _ in range(pick.choice((1, 1, 1, 2, 3))):
            if pick.randrange(3) == 0:
                file = pb.CorpusFile(name=self.text(), role=pick.choice((0, 0, 1, 2, 3)))  # type: ignore[arg-type]
                if pick.randrange(3) == 0:
                    file.sha256 = pick.choice((*self._known.corpora, "0" * 64))
                if pick.randrange(3) == 0:
                    file.weight = pick.choice((0.5, 1.0, 1.5))
                messages.append(pb.TrainRequest(corpus_file=file))
                if file.sha256:
                    continue
            data = b"".join(pick.choices(PIECES, k=pick.randrange(1, 20)))
            data = pick.choice((data, b"abc cab bca\n" * 40))
            size += len(data)
            messages.append(pb.TrainRequest(corpus_chunk=data))
        # A job takes more time than a thousand calls, so most uploads fail at their end.
        size += pick.choice((0, 1, 1, 1))
        messages.append(pb.TrainRequest(corpus_end=pb.CorpusEnd(size_bytes=size)))
        return messages

    def _import(self) -> list[Any]:
        pick = self._pick
        spec = self._likely(pb.ImportModelSpec.DESCRIPTOR)
        messages = [pb.ImportModelRequest(spec=spec)]
        if spec.HasField("state_dict") and pick.randrange(8):
            tokens = pick.choice((list("abc ,!.\n"), ["a", " b"], [self.text()]))
            messages.append(pb.ImportModelRequest(vocabulary=pb.VocabularyPart(tokens=tokens)))
        data = pick.choice(stored_files())
        if pick.randrange(2):
            data = damaged_file(self._draw, data)
        if spec.HasField("state_dict") and pick.randrange(4):
            data = _without_metadata(data)
        if spec.size_bytes:
            spec.size_bytes = len(data)
            messages[0].spec.CopyFrom(spec)
        size = pick.choice((7, 100, 1 << 16)) if len(data) < 5000 else 1 << 16
        chunks = [data[begin : begin + size] for begin in range(0, len(data), size)]
        messages += [pb.ImportModelRequest(chunk=chunk) for chunk in chunks]
        end = pb.ImportModelEnd(size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        messages.append(pb.ImportModelRequest(end=end))
        return messages

    def _stream(self, method: str) -> list[Any]:
        pick = self._pick
        kind = METHODS[method].input_type
        make: Any = GetMessageClass(kind)
        spec = self._likely(kind.fields_by_name["spec"].message_type)
        messages = [make(spec=spec)]
        for _ in range(pick.randrange(5)):
            piece = pb.TextPiece(
                text=self.text(), end=pick.randrange(3) == 0, more=not pick.randrange(6)
            )
            if method == "ScoreStream":
                messages.append(make(piece=piece))
                continue
            choice = pick.randrange(8)
            if choice < 4:
                messages.append(make(learn=piece))
            elif choice == 4:
                messages.append(make(predict=piece))
            elif choice == 5:
                messages.append(make(snapshot=pb.Snapshot()))
            elif choice == 6:
                messages.append(make(roll_back=pb.RollBack()))
            else:
                check = bool(pick.randrange(4))
                messages.append(make(publish=pb.Publish(model=MADE[0], validate_only=check)))
        return messages

    # Odd values

    def _any(self, kind: Descriptor, depth: int = 0) -> Any:
        """Returns a message of odd values, of any fields."""
        message: Any = GetMessageClass(kind)()
        for item in kind.fields:
            if self._pick.randrange(3) == 0:
                self._set(message, item, depth)
        return message

    def _spoil(self, message: Any) -> None:
        """Changes a field of a message, or of a message within."""
        while True:
            kind = message.DESCRIPTOR
            if not kind.fields:
                return
            item = self._pick.choice(kind.fields)
            inner = item.message_type is not None and not item.is_repeated
            if inner and message.HasField(item.name) and self._pick.randrange(8):
                message = getattr(message, item.name)
                continue
            present = [each for each, _ in message.ListFields()]
            if inner and present and self._pick.randrange(2):
                continue
            self._set(message, item)
            return

    def _set(self, message: Any, item: Any, depth: int = 0) -> None:
        if item.message_type is not None and item.message_type.GetOptions().map_entry:
            self._set_entries(getattr(message, item.name), item.message_type, depth)
        elif item.is_repeated:
            few = (0, 1, 2, 5, 17)
            times = self._pick.choice((*few, *few, *few, 101, 1001, 1025, 10_001))
            values = [self._value(item, depth) for _ in range(min(times, 17))]
            values = (values * (times // 17 + 1))[:times] if values else []
            held = getattr(message, item.name)
            del held[:]
            held.extend(values)
        elif item.message_type is not None:
            getattr(message, item.name).CopyFrom(self._value(item, depth))
        elif self._pick.randrange(12) == 0:
            message.ClearField(item.name)
        else:
            setattr(message, item.name, self._value(item, depth))

    def _set_entries(self, held: Any, entry: Any, depth: int) -> None:
        """Gives a map some entries, whose keys and values are scalars."""
        held.clear()
        parts = entry.fields_by_name
        for _ in range(self._pick.choice((0, 1, 2, 5, 65, 101))):
            held[self._value(parts["key"], depth)] = self._value(parts["value"], depth)

    def _value(self, item: Any, depth: int) -> Any:
        pick = self._pick
        if item.message_type is not None:
            kind = item.message_type
            if depth < 4 and pick.randrange(2):
                return self._any(kind, depth + 1)
            return GetMessageClass(kind)()
        if item.enum_type is not None:
            return pick.choice((*item.enum_type.values_by_number, *_INTS, 99))
        match item.cpp_type:
            case FieldDescriptor.CPPTYPE_BOOL:
                return pick.randrange(2) == 0
            case FieldDescriptor.CPPTYPE_UINT32:
                return pick.choice(_UINTS)
            case FieldDescriptor.CPPTYPE_UINT64:
                return pick.choice(_ULONGS)
            case FieldDescriptor.CPPTYPE_INT32:
                return pick.choice(_INTS)
            case FieldDescriptor.CPPTYPE_INT64:
                return pick.choice((*_INTS, 2**63 - 1, -(2**63)))
            case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
                return pick.choice(_DOUBLES)
        if item.type == FieldDescriptor.TYPE_BYTES:
            return self.state() if item.name == "state" else self._bytes()
        return self._named_text(item.name)

    def _bytes(self) -> bytes:
        pick = self._pick
        if pick.randrange(100) == 0:
            return pick.randbytes(100) * pick.choice((1000, 20_000))
        return b"".join(pick.choices(PIECES, k=pick.randrange(8)))

    def _named_text(self, name: str) -> str:
        pick = self._pick
        if pick.randrange(4) == 0:
            return self.text()
        if name == "regex":
            text = "".join(pick.choices(SYMBOLS, k=pick.randrange(1, 12)))
            return text.encode(errors="replace").decode()
        match name:
            case "model" | "init_from":
                model = self.model()
                return pick.choice((model, f"{model}@{pick.choice(('latest', 'x', '1', ''))}"))
            case "job":
                return self.job()
            case "page_token":
                return pick.choice(self._known.tokens or ("abc",))
            case "sha256":
                return pick.choice((*self._known.corpora, "0" * 64, "g" * 64))
            case "encoding":
                return pick.choice(_ENCODINGS)
        return self.text()

    def text(self) -> str:
        """Returns a text, of characters of the models in half of the calls."""
        pick = self._pick
        if pick.randrange(2):
            return "".join(pick.choices("abc ,!\n", k=pick.randrange(30)))
        if pick.randrange(150) == 0:
            return pick.choice(("abc ", "é", "a", "a.", "\n")) * pick.choice((16_000, 250_000))
        return pick.choice(_TEXTS)

    def model(self) -> str:
        """Returns the name of a model that exists, or may exist."""
        return self._pick.choice(MADE if self._deletes else self._known.models)

    def job(self) -> str:
        """Returns the id of a job, which may have been deleted."""
        return self._pick.choice(self._known.jobs)

    def state(self) -> bytes:
        """Returns a state of some model, damaged now and then."""
        state = self._pick.choice(self._known.states)
        return self._draw.bytes(state) if self._pick.randrange(3) == 0 else state

    def of(self, kind: type[Message]) -> Any:
        """Returns a message that may well be legal."""
        return self._likely(kind.DESCRIPTOR)  # type: ignore[arg-type]

    def texts(self) -> list[str]:
        """Returns a few texts."""
        return [self.text() for _ in range(self._pick.choice((1, 1, 2, 5, 40)))]

    def references(self) -> list[Any]:
        """Returns references to tokens."""
        pick = self._pick
        make = (
            lambda: pb.TokenReference(id=pick.choice((0, 1, 2, 3))),
            lambda: pb.TokenReference(text=pick.choice(("a", "b", " ", "abc", ""))),
            lambda: pb.TokenReference(end=True),
        )
        return [pick.choice(make)() for _ in range(pick.choice((1, 2, 3)))]

    def biases(self) -> list[Any]:
        """Returns biases of tokens."""
        return [
            pb.TokenBias(token=token, bias=self._pick.choice((0, 1, -100, 100)))
            for token in self.references()
        ]

    def short_regex(self) -> str:
        """Returns a regular expression that compiles."""
        return self._pick.choice(("[abc ]{1,4}", "a*", "(a|b)+c?", "[^x]*", "abc"))


_ANY_POLICY = (0, 1, 2, 3)
_SOURCE: dict[str, Any] = {
    "model": (1, _Drawer.model),
    "version": (0.1, (0, 1, 2)),
    "unknown_policy": (0.6, (0, 2, 2, 2, 1, 3)),
}
_PRECISE: dict[str, Any] = {"inference_precision": (0.3, (0, 1, 2, 2))}
_DETAILS: dict[str, Any] = {
    "log_probabilities": (0.2, (True,)),
    "ranks": (0.1, (True,)),
    "top_log_probabilities": (0.1, (1, 3, 20)),
}
_PAGES: dict[str, Any] = {"page_size": (0.5, (0, 1, 2, 1000, 2**32 - 1))}
_JOB: dict[str, Any] = {"job": (1, _Drawer.job)}
_LIKELY: dict[str, dict[str, Any]] = {
    "GenerateRequest": {
        **_SOURCE,
        **_PRECISE,
        **_DETAILS,
        "prompt": (0.7, _Drawer.text),
        "max_new_tokens": (0.9, (0, 1, 8, 30, 150)),
        "temperature": (0.2, (0.0, 0.5, 100.0)),
        "top_k": (0.1, (1, 3)),
        "top_p": (0.1, (0.5, 1.0)),
        "typical_p": (0.1, (0.5, 1.0)),
        "min_p": (0.1, (0.1, 1.0)),
        "seed": (0.3, (0, 1, 2**64 - 1)),
        "stop_sequences": (0.1, (["a"], ["abc", "b"])),
        "repetition_penalty": (0.1, (0.5, 1.5)),
        "presence_penalty": (0.1, (-1.0, 1.0)),
        "frequency_penalty": (0.1, (-1.0, 1.0)),
        "token_biases": (0.1, _Drawer.biases),
        "banned_tokens": (0.1, _Drawer.references),
        "forced_tokens": (0.1, _Drawer.references),
        "n": (0.2, (1, 2, 5, 20)),
        "min_new_tokens": (0.1, (1, 5)),
        "max_time_s": (0.1, (0.001, 0.5, 100)),
        "echo": (0.1, (True,)),
        "regex": (0.15, _Drawer.short_regex),
        "state": (0.15, _Drawer.state),
        "return_state": (0.15, (True,)),
        "novelty": (0.05, (True,)),
    },
    "ScoreRequest": {
        **_SOURCE,
        **_PRECISE,
        **_DETAILS,
        "texts": (1, _Drawer.texts),
        "context": (0.3, _Drawer.text),
        "state": (0.1, _Drawer.state),
        "return_states": (0.1, (True,)),
    },
    "EmbedRequest": {
        **_SOURCE,
        **_PRECISE,
        "texts": (1, _Drawer.texts),
        "all_layers": (0.3, (True,)),
    },
    "ScoreStreamSpec": {
        **_SOURCE,
        **_PRECISE,
        **_DETAILS,
        "context": (0.3, _Drawer.text),
        "state": (0.1, _Drawer.state),
        "return_state": (0.2, (True,)),
        "on_error": (0.4, (1, 2)),
    },
    "LearnStreamSpec": {
        **_SOURCE,
        **_DETAILS,
        "optimizer": (0.3, (1, 3)),
        "learning_rate": (0.3, (0.0, 0.1, 1e6)),
        "clip_norm": (0.2, (0.0, 1.0)),
        "window": (0.3, (1, 3, 4096)),
        "on_error": (0.4, (1, 2)),
    },
    "TrainSpec": {
        "model": (1, MADE[1:4]),
        "tokenizer": (0.4, lambda self: self.of(pb.TokenizerSpec)),
        "data": (1, lambda self: self.of(pb.DataSpec)),
        "network": (1, lambda self: self.of(pb.NetworkSpec)),
        "optimizer": (0.3, lambda self: self.of(pb.OptimizerSpec)),
        "limits": (1, lambda self: self.of(pb.LimitsSpec)),
        "report": (0.2, (pb.ReportSpec(sample_tokens=3),)),
        "preset": (0.05, (1,)),
        "request_id": (0.15, ("one", "two")),
        "init_from": (0.1, _Drawer.model),
    },
    "TokenizerSpec": {
        "kind": (0.8, tuple(range(7))),
        "max_vocabulary_size": (0.3, (1, 256, 300)),
        "unknown_policy": (0.3, _ANY_POLICY),
        "min_frequency": (0.2, (1, 2)),
        "lower_case": (0.2, (True,)),
    },
    "DataSpec": {
        "layout": (0.5, (1, 2)),
        "validation_fraction": (0.3, (0.0, 0.3)),
        "test_fraction": (0.2, (0.3,)),
        "batch_size": (0.9, (1, 2)),
        "window": (0.9, (2, 8)),
        "format": (0.4, (1, 2, 3)),
        "encoding": (0.1, _ENCODINGS),
        "novelty_index": (0.1, (True,)),
        "missing": (0.2, (1, 2)),
    },
    "NetworkSpec": {
        "cell": (0.5, (1, 2, 3)),
        "hidden_size": (1, (4, 8)),
        "layers": (0.3, (1, 2)),
        "embedding_size": (0.9, (0, 4, 8)),
        "dropout": (0.1, (0.5,)),
        "output_dropout": (0.1, (0.5,)),
        "tied_weights": (0.1, (True,)),
        "softmax": (0.1, (1, 2)),
        "softmax_clusters": (0.1, ([32], [32, 64], [5])),
    },
    "OptimizerSpec": {
        "optimizer": (0.5, (1, 2, 3)),
        "learning_rate": (0.3, (0.01, 1e6)),
        "schedule": (0.3, (1, 2, 3)),
        "accumulation_steps": (0.2, (1, 3)),
        "averaging": (0.2, (1, 4)),
        "final_rate": (0.2, (0.5, 1)),
    },
    "LimitsSpec": {"max_steps": (1, (1, 3)), "max_time_s": (0.2, (0.1, 1.0))},
    "ListJobsRequest": {**_PAGES, "states": (0.3, ([1, 2], [0], [4])), "model": (0.2, ("a",))},
    "ListModelsRequest": _PAGES,
    "GetModelRequest": {"model": (1, _Drawer.model), "version": (0.3, (0, 1, 2))},
    "DeleteModelRequest": {
        "model": (1, _Drawer.model),
        "version": (0.5, (1, 2, 3)),
        "all_versions": (0.4, (True,)),
        "force": (0.4, (True,)),
    },
    "SetAliasRequest": {
        "model": (1, _Drawer.model),
        "alias": (1, ("x", "y", "latest", "1")),
        "version": (0.5, (1, 2)),
    },
    "ExportModelRequest": {
        "model": (1, _Drawer.model),
        "version": (0.3, (0, 1, 2)),
        "offset": (0.3, (1, 1000, 10**9)),
        "sha256": (0.1, ("0" * 64,)),
    },
    "ImportModelSpec": {
        "model": (1, MADE[1:4]),
        "alias": (0.2, ("x", "y")),
        "size_bytes": (0.3, (1,)),
        "sha256": (0.05, ("0" * 64,)),
        "reuse_identical": (0.5, (True,)),
        "state_dict": (0.4, lambda self: self.of(pb.StateDictSpec)),
    },
    "StateDictSpec": {
        "tokenizer": (0.6, lambda self: self.of(pb.TokenizerSpec)),
        "layout": (0.3, (1, 2)),
        "tied_weights": (0.2, (True,)),
    },
    "DeleteAliasRequest": {"model": (1, _Drawer.model), "alias": (1, ("x", "y"))},
    "WatchJobRequest": {**_JOB, "after_sequence": (0.3, (0, 1, 3, 10**6))},
    **{f"{name}JobRequest": _JOB for name in ("Get", "Cancel", "Pause", "Resume", "Delete")},
}
"""Of each message the fields that are likely: how likely, and the values, or what makes one."""
