"""`TrainOptions`, `GenerateOptions` and the others list the keyword arguments of a call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias, TypedDict

from treadle.client.errors import InputError
from treadle.client.messages.tokens import AnyToken
from treadle.v1.sequence_pb2 import TrainSpec

UnknownPolicy: TypeAlias = Literal["error", "skip", "unknown"] | int
"""A word, or the number of a `treadle.v1.UnknownPolicy`."""

OnError: TypeAlias = Literal["stop", "skip"] | int
"""A word, or the number of a `treadle.v1.OnError`."""

JobWeights: TypeAlias = Literal["last", "best"] | int
"""A word, or the number of a `treadle.v1.JobWeights`."""

InferencePrecision: TypeAlias = Literal["fp32", "int8"] | int
"""A word, or the number of a `treadle.v1.InferencePrecision`."""


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
    softmax: Literal["full", "factored"] | int
    softmax_clusters: Sequence[int]
    optimizer: Literal["sgd", "adagrad", "adam"] | int
    learning_rate: float
    schedule: Literal["constant", "cosine", "plateau"] | int
    plateau_factor: float
    plateau_patience: int
    averaging: float
    final_rate: float
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
    tags: Mapping[str, str]
    nodes: int
    init_from: str
    init_from_version: int


class StateDictOptions(TypedDict, total=False):
    """The fields of a StateDictSpec, in one flat list; `tokenizer` stands for `kind`."""

    tokenizer: Literal["characters", "bytes", "words", "events", "whitespace"] | int
    layout: Literal["text", "lines"] | int
    unknown_policy: UnknownPolicy
    lower_case: bool
    tied_weights: bool


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
    inference_precision: InferencePrecision


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
    inference_precision: InferencePrecision


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
    inference_precision: InferencePrecision


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
    inference_precision: InferencePrecision


def check_model_or_job(model: str, job: str) -> None:
    """Checks that a call names either a model or a job, whose weights it uses.

    Raises:
        InputError: Neither a model nor a job is named, or both.
    """
    if bool(model) == bool(job):
        raise InputError("name either a model or a job=, whose weights are to be used")


def without_alias(model: str) -> str:
    """Returns a model's name without its alias, for calls that give a version.

    The server takes an alias or a version, not both.
    """
    return model.partition("@")[0]


def option_home(option: str) -> tuple[str, str]:
    """Returns the place of an option in a TrainSpec.

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
