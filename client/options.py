"""Turns keyword arguments into the messages of a request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypedDict, TypeVar, cast

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import Message

from treadle.client.errors import InputError
from treadle.client.tokens import AnyToken, token_biases, token_references
from treadle.v1.sequence_pb2 import TrainSpec

AnyMessage = TypeVar("AnyMessage", bound=Message)

UnknownPolicy: TypeAlias = Literal["error", "skip", "unknown"] | int
"""A word, or the number of a `treadle.v1.UnknownPolicy`."""

OnError: TypeAlias = Literal["stop", "skip"] | int
"""A word, or the number of a `treadle.v1.OnError`."""

JobWeights: TypeAlias = Literal["last", "best"] | int
"""A word, or the number of a `treadle.v1.JobWeights`."""


class TrainOptions(TypedDict, total=False):
    """Everything of a TrainSpec but the model's name, in one flat list.

    The names are those of `sequence.proto`, where each is described with its default; only
    `tokenizer` stands for TokenizerSpec's `kind`. Enums are given as words, such as "lstm".
    """

    preset: Literal["auto"] | int
    tokenizer: Literal["characters", "bytes", "words", "subwords", "events", "whitespace"] | int
    max_vocabulary_size: int
    unknown_policy: UnknownPolicy
    min_frequency: int
    lower_case: bool
    layout: Literal["text", "lines"] | int
    format: Literal["plain", "jsonl", "csv"] | int
    column: str
    encoding: str
    missing: Literal["error", "skip"] | int
    novelty_index: bool
    validation_fraction: float
    test_fraction: float
    batch_size: int
    window: int
    cell: Literal["rnn", "gru", "lstm"] | int
    hidden_size: int
    layers: int
    embedding_size: int
    dropout: float
    output_dropout: float
    tied_weights: bool
    optimizer: Literal["sgd", "adagrad", "adam"] | int
    learning_rate: float
    schedule: Literal["constant", "cosine", "plateau"] | int
    plateau_factor: float
    plateau_patience: int
    warmup_steps: int
    beta1: float
    beta2: float
    weight_decay: float
    clip_norm: float
    clip_value: float
    precision: Literal["fp32", "bf16"] | int
    accumulation_steps: int
    max_steps: int
    max_epochs: float
    max_time_s: float
    max_wall_time_s: float
    max_tokens: int
    max_memory_bytes: int
    early_stopping_patience: int
    keep: Literal["best", "last"] | int
    progress_interval_s: float
    validation_interval_steps: int
    sample_tokens: int
    seed: int
    request_id: str
    init_from: str
    init_from_version: int


class GenerateOptions(TypedDict, total=False):
    """The fields of a GenerateRequest but the model's name, the prompt and `n`.

    A token is its number, its text, or `treadle.client.END`.

    With `regex` the probabilities of the tokens that may follow are scaled up to 1 at each token,
    so matching texts are not drawn in proportion to the model's probability of them. For the
    likeliest ones give `best_of`; for draws in proportion, throw away free draws that do not
    match, or draw many and weight each by its `result.total_log_probability`.
    """

    version: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    token_biases: Mapping[AnyToken, float]
    banned_tokens: Sequence[AnyToken]
    forced_tokens: Sequence[AnyToken]
    seed: int
    max_new_tokens: int
    min_new_tokens: int
    max_time_s: float
    stop_sequences: Sequence[str]
    regex: str
    best_of: int
    echo: bool
    log_probabilities: bool
    ranks: bool
    top_log_probabilities: int
    novelty: bool
    state: bytes
    return_state: bool
    unknown_policy: UnknownPolicy
    job: str
    job_weights: JobWeights


class ScoreOptions(TypedDict, total=False):
    """The fields of a ScoreRequest but the model's name and the texts."""

    version: int
    context: str
    log_probabilities: bool
    ranks: bool
    top_log_probabilities: int
    state: bytes
    return_states: bool
    unknown_policy: UnknownPolicy
    job: str
    job_weights: JobWeights


class ScoreStreamOptions(TypedDict, total=False):
    """The fields of a ScoreStreamSpec but the model's name."""

    version: int
    context: str
    log_probabilities: bool
    ranks: bool
    top_log_probabilities: int
    state: bytes
    return_state: bool
    unknown_policy: UnknownPolicy
    on_error: OnError
    job: str
    job_weights: JobWeights


class LearnStreamOptions(TypedDict, total=False):
    """The fields of a LearnStreamSpec but the model's name."""

    version: int
    optimizer: Literal["sgd", "adam"] | int
    learning_rate: float
    clip_norm: float
    window: int
    log_probabilities: bool
    ranks: bool
    top_log_probabilities: int
    unknown_policy: UnknownPolicy
    on_error: OnError


class EmbedOptions(TypedDict, total=False):
    """The fields of an EmbedRequest but the model's name and the texts."""

    version: int
    all_layers: bool
    unknown_policy: UnknownPolicy
    job: str
    job_weights: JobWeights


def make_spec(model: str, spec: TrainSpec | None, options: TrainOptions) -> TrainSpec:
    """Lays options over a spec.

    Args:
        model: The model's name; empty keeps the spec's.
        spec: Where to begin; it is not changed. None begins with the server's defaults.
        options: What to set on top.

    Returns:
        A new spec.

    Raises:
        InputError: An option is unknown, or its value is of the wrong type or out of range.
    """
    made = TrainSpec()
    if spec is not None:
        made.CopyFrom(spec)
    if model:
        set_field(made, "model", model)
    for name, value in options.items():
        group, field = option_home(name)
        set_field(getattr(made, group) if group else made, field, value)
    return made


def check_one(model: str, job: str) -> None:
    """Checks that it is told whose weights to use.

    Raises:
        InputError: Neither a model nor a job is named, or both.
    """
    if bool(model) == bool(job):
        raise InputError("name either a model or a job=, whose weights are to be used")


def pinned(model: str) -> str:
    """Names a model for calls that give a version: an alias and a version exclude each other."""
    return model.partition("@")[0]


def option_home(option: str) -> tuple[str, str]:
    """Finds where an option stands in a TrainSpec.

    Returns:
        The name of the part ("" for the spec itself) and the name of the field in it.

    Raises:
        InputError: There is no such option.
    """
    if option == "tokenizer":
        return "tokenizer", "kind"
    if option in TrainOptions.__annotations__:
        for part in TrainSpec.DESCRIPTOR.fields:
            if part.message_type and option in part.message_type.fields_by_name:
                return part.name, option
        return "", option
    raise InputError(f"there is no training option {option!r}")


def make_request(kind: type[AnyMessage], **values: Any) -> AnyMessage:
    """Makes a request from the values of its fields.

    Raises:
        InputError: A field is unknown, or its value is of the wrong type or out of range.
    """
    request = kind()
    for name, value in values.items():
        set_field(request, name, value)
    return request


_NEVER_ZERO = frozenset({
    "max_vocabulary_size", "min_frequency", "batch_size", "window", "hidden_size", "layers",
    "accumulation_steps", "plateau_patience", "column", "encoding", "request_id", "init_from",
    "regex", "best_of",
})  # fmt: skip
"""Fields that the contract takes as not set where they are 0 or empty, and where neither is legal.

Who gives 0 means something else than the default, so it must not be taken for that.
"""


def set_field(message: Message, name: str, value: Any) -> None:
    """Sets one scalar, enum or repeated field, those of tokens among them.

    Raises:
        InputError: There is no such field, or the value is of the wrong type or out of range.
    """
    field = cast(Any, message.DESCRIPTOR.fields_by_name.get(name))
    if field is None:
        raise InputError(f"{message.DESCRIPTOR.name} has no field {name!r}")
    if name in _NEVER_ZERO and isinstance(value, int | str) and not value:
        raise InputError(f"{name} cannot be {value!r}: leave it out for the default", name)
    if field.enum_type is not None:
        value = _numbers(field, value)
    try:
        if field.message_type is not None:
            getattr(message, name).extend(_tokens(field, value))
        elif field.is_repeated:
            getattr(message, name).extend([value] if isinstance(value, str) else value)
        else:
            setattr(message, name, value)
    except UnicodeEncodeError as error:
        raise InputError(f"{name} is not text: it holds bytes that are not UTF-8", name) from error
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} cannot be {value!r}", name) from error


def _tokens(field: Any, value: Any) -> Any:
    """Turns tokens, or a mapping from tokens to biases, into what the contract has for them."""
    if field.message_type.name == "TokenBias":
        return token_biases(value, field.name)
    return token_references(value, field.name)


def _numbers(field: Any, value: Any) -> Any:
    """Turns an enum's words, one or several, into numbers; other numbers are left as they are."""
    if not field.is_repeated:
        return _number(field, value)
    if isinstance(value, str) or not isinstance(value, Iterable):
        value = [value]
    return [_number(field, each) for each in value]


def _number(field: Any, value: Any) -> int:
    if isinstance(value, str):
        return enum_number(field.enum_type, value, field.name)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    words = ", ".join(enum_words(field.enum_type))
    raise InputError(f"{field.name} cannot be {value!r}: it is one of {words}")


def enum_words(enum: EnumDescriptor) -> Sequence[str]:
    """Lists an enum's values as lower-case words, without the unset one: "rnn", "gru", ..."""
    return [word_of(enum, value.number) for value in enum.values if value.number]


def enum_number(enum: EnumDescriptor, word: str, name: str) -> int:
    """Finds the number of an enum's word.

    Raises:
        InputError: The enum has no such word; the message lists those that it has.
    """
    for value in enum.values:
        if value.number and word_of(enum, value.number) == word.lower():
            return int(value.number)
    words = ", ".join(enum_words(enum))
    raise InputError(f"{name} cannot be {word!r}: it is one of {words}", name)


def word_of(enum: EnumDescriptor, number: int) -> str:
    """Names an enum's value by its word: CELL_LSTM is "lstm"; an unknown number is itself."""
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    value = enum.values_by_number.get(number)
    return str(number) if value is None else value.name.removeprefix(prefix).lower()


def field_word(message: Message, name: str) -> str:
    """Names the value of one of a message's enum fields by its word."""
    enum = cast(Any, message.DESCRIPTOR.fields_by_name[name].enum_type)
    return word_of(enum, getattr(message, name))
