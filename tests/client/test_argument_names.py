"""Errors speak of flags on the command line and of arguments in Python, and never of the wire."""

from __future__ import annotations

import argparse
import ast
from pathlib import Path
from typing import Any

import grpc
import pytest

from treadle.client.argument_names import PYTHON, ArgumentNames, argument_of, rename_fields
from treadle.client.cli.main import make_parser
from treadle.client.cli.options import flag_names
from treadle.client.messages.status import from_rpc_error
from treadle.v1 import sequence_pb2 as v1

from .fake import FakeServer
from .shell import complaint, run
from .test_errors import Refusal

ROOT = Path(__file__).resolve().parents[2]

COMMANDS: dict[str, tuple[str, ...]] = {
    "TrainSpec": ("train",),
    "TokenizerSpec": ("train",),
    "DataSpec": ("train",),
    "NetworkSpec": ("train",),
    "OptimizerSpec": ("train",),
    "LimitsSpec": ("train",),
    "ReportSpec": ("train",),
    "TrainRequest": ("train",),
    "CorpusFile": ("train",),
    "WatchJobRequest": ("watch",),
    "GetJobRequest": ("jobs show",),
    "ListJobsRequest": ("jobs list",),
    "CancelJobRequest": ("jobs cancel",),
    "PauseJobRequest": ("jobs pause",),
    "ResumeJobRequest": ("jobs resume",),
    "DeleteJobRequest": ("jobs delete",),
    "GenerateRequest": ("generate", "chat"),
    "ScoreRequest": ("score",),
    "ScoreStreamRequest": ("score-stream",),
    "ScoreStreamSpec": ("score-stream",),
    "LearnStreamRequest": ("score-stream",),
    "LearnStreamSpec": ("score-stream",),
    "EmbedRequest": ("embed",),
    "ListModelsRequest": ("models list",),
    "GetModelRequest": ("models show",),
    "DeleteModelRequest": ("models delete",),
    "SetAliasRequest": ("models alias",),
    "DeleteAliasRequest": ("models unalias",),
    "ExportModelRequest": ("models pull", "models export"),
    "ImportModelRequest": ("models push", "models import"),
    "ImportModelSpec": ("models push", "models import"),
    "StateDictSpec": ("models import",),
    "GetServerInfoRequest": ("info",),
    # Files for clients of the HTTP address; a command uploads what it trains on itself.
    "FileSpec": (),
    "UploadFileRequest": (),
    "ListFilesRequest": (),
    "GetFileRequest": (),
    "ReadFileRequest": (),
    "DeleteFileRequest": (),
}
"""The commands behind each message of a request."""

UNNAMED = {
    # Parts that hold fields, and what a command fills in by itself.
    "spec",
    "data",
    "network",
    "limits",
    "report",
    "page_size",
    "page_token",
    "corpus_end",
    "corpus_file",
    "name",
    "sha256",
    "size_bytes",
    "predict",
    "snapshot",
    "roll_back",
    "offset",
    "end",
    "return_state",
    "resume",
    "resume_interval",
    # Ids are for programs; a server chooses clusters by the corpus.
    "prompt_tokens",
    "tokens",
    "softmax_clusters",
    # `chat` samples one text from each typed line, and prints nothing but the text.
    "n",
    "echo",
    "log_probabilities",
    "ranks",
    "top_log_probabilities",
    "novelty",
    "job",
    "job_weights",
    "best_of",
    "regex",
    "token_biases",
    "banned_tokens",
    "forced_tokens",
    "min_new_tokens",
    "max_time_s",
}
"""Fields that no flag of some command of theirs stands for."""


def words_for(command: str) -> ArgumentNames:
    first, _, action = command.partition(" ")
    return flag_names.argument_names(
        make_parser(), argparse.Namespace(command=first, action=action)
    )


def request_fields() -> list[tuple[str, str, str]]:
    """Every field of every request, with the commands that send it."""
    found = []
    for name, message in v1.DESCRIPTOR.message_types_by_name.items():
        if not name.endswith(("Request", "Spec")) and name not in COMMANDS:
            continue
        for command in COMMANDS[name]:
            found += [(name, command, field.name) for field in message.fields]
    return found


@pytest.mark.parametrize(("message", "command", "field"), request_fields())
def test_every_field_of_a_request_has_a_flag(message: str, command: str, field: str) -> None:
    part = {"TokenizerSpec": "tokenizer.", "OptimizerSpec": "optimizer."}.get(message, "")
    argument = argument_of(part + field)
    called = words_for(command).names.get(argument, "")
    if argument in UNNAMED and not called:
        return
    assert called, f"{command} calls the field {field} nothing: give it a flag or a place"
    assert "_" not in called, called


def settings_in_errors() -> set[str]:
    """Every setting that a ConfigError of the model or the server names in its source."""
    found = set()
    for path in [*(ROOT / "model").rglob("*.py"), *(ROOT / "server").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or getattr(node.func, "id", "") != "ConfigError":
                continue
            found |= {
                value.value
                for value in (*node.args[1:], *(word.value for word in node.keywords))
                if isinstance(value, ast.Constant) and isinstance(value.value, str)
            }
    return found


def test_every_setting_that_an_error_names_is_a_field_of_some_request() -> None:
    fields = {argument_of(field) for _, _, field in request_fields()} | {"tokenizer"}
    named = settings_in_errors()
    assert len(named) > 10
    assert {argument_of(name) for name in named} - {""} <= fields


SENTENCES = [
    (
        "train",
        "'é' (U+00E9) at position 3 is not among the 5 characters of the vocabulary: take it out, "
        "or lower min_frequency, or set unknown_policy to 'skip' or 'unknown'",
        "",
        "'é' (U+00E9) at position 3 is not among the 5 characters of the vocabulary: take it out, "
        "or lower --min-frequency, or give --unknown skip or --unknown unknown",
    ),
    (
        "train",
        "spec.limits.max_time_s must be a finite number above 0, not -3.0; spec.network.layers "
        "must be a whole number from 1 to 8, not 9",
        "spec.limits.max_time_s spec.network.layers",
        "--train-for must be a finite number above 0, not -3.0; --layers must be a whole number "
        "from 1 to 8, not 9",
    ),
    (
        "train",
        "tokenizer.kind 'subwords' needs the package tokenizers: pip install '.[bpe]'",
        "spec.tokenizer.kind",
        "--tokenizer 'subwords' needs the package tokenizers: pip install '.[bpe]'",
    ),
    (
        "train",
        "it is not UTF-8; set data.encoding to 'utf-16-le', or set tokenizer.kind to 'bytes', or "
        "set data.column, or set data.missing to 'skip'",
        "",
        "it is not UTF-8; give --encoding utf-16-le, or give --tokenizer bytes, or set --column, "
        "or give --missing skip",
    ),
    (
        "generate",
        "the model has no novelty index: train it with novelty_index, or leave novelty out",
        "",
        "the model has no novelty index: train it with --novelty-index, or leave --novelty out",
    ),
    (
        "generate",
        "the state was made by a model with other weights: name the model and version that "
        "returned it, or leave state out",
        "",
        "the state was made by a model with other weights: name the model and version that "
        "returned it, or leave --state out",
    ),
    (
        "models delete",
        "alias prod points to version 2 of model 'm': move or remove the alias first, or set force",
        "",
        "alias prod points to version 2 of model 'm': move or remove the alias first, or add "
        "--force",
    ),
    (
        "generate",
        "regex needs the package outlines-core: pip install outlines-core",
        "regex",
        "--regex needs the package outlines-core: pip install outlines-core",
    ),
    (
        "train",
        "training would take 4.3 MiB of memory and may take 1 byte: raise "
        "limits.max_memory_bytes, or lower network.hidden_size, network.layers or "
        "tokenizer.max_vocabulary_size",
        "spec.limits.max_memory_bytes",
        "training would take 4.3 MiB of memory and may take 1 byte: raise --max-memory, or lower "
        "--hidden-size, --layers or --max-vocabulary-size",
    ),
    (
        "score",
        "top_log_probabilities must be at most 20",
        "top_log_probabilities",
        "--top must be at most 20",
    ),
    (
        "score",
        "there is no model 'max_steps' and no file seed.txt or rnn.weight_hh_l0",
        "",
        "there is no model 'max_steps' and no file seed.txt or rnn.weight_hh_l0",
    ),
]


@pytest.mark.parametrize(("command", "sentence", "at_fault", "expected"), SENTENCES)
def test_a_sentence_in_flags(command: str, sentence: str, at_fault: str, expected: str) -> None:
    arguments = [argument_of(path) for path in at_fault.split()]
    assert rename_fields(sentence, words_for(command), arguments) == expected


def test_novelty_that_novel_needs_is_called_novel() -> None:
    parser = make_parser()
    sentence = "train it with novelty_index, or leave novelty out"
    for flags, flag in (["--novel"], "--novel"), (["--novel", "--novelty"], "--novelty"):
        names = flag_names.argument_names(parser, parser.parse_args(["generate", "m", *flags]))
        expected = f"train it with --novelty-index, or leave {flag} out"
        assert rename_fields(sentence, names) == expected


def test_a_sentence_in_arguments_of_python() -> None:
    assert (
        rename_fields("spec.limits.max_time_s must be above 0; spec.tokenizer.kind is set", PYTHON)
        == "max_time_s must be above 0; tokenizer is set"
    )
    assert rename_fields("set unknown_policy to 'skip'", PYTHON) == "give unknown_policy='skip'"
    assert rename_fields("the window of seed.txt", PYTHON, ["window"]) == "the window of seed.txt"


# ---------------------------------------------------------------- the client's own


def test_the_command_line_says_what_an_address_lacks() -> None:
    said = complaint(run("localhost", "info"), 2)
    assert said.startswith("treadle: the server's address 'localhost' lacks a port; give HOST:PORT")


def test_nothing_listens_names_the_remedy() -> None:
    said = complaint(run("127.0.0.1:1", "info"), 3)
    assert said == (
        "treadle: nothing listens at 127.0.0.1:1: start treadle-server, or name another with "
        "--server"
    )


def test_a_message_that_is_too_large_names_score_stream(server: FakeServer) -> None:
    said = complaint(run(server.address, "score", "m", "-", data=b"a" * 5_000_000), 1)
    assert said.startswith("treadle: the message to send has 5,000,0")
    assert "send less at once; `treadle score-stream` scores a text of any length" in said
    for details in (
        "Received message larger than max (10 vs. 4)",
        "SERVER: Sent message larger than max (10 vs. 4)",
    ):
        refusal: Any = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, details)
        assert "has 10 bytes" in str(from_rpc_error(refusal, "host:1"))


def test_a_refused_setting_is_called_by_its_flag(server: FakeServer, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.write_text("hello")
    # The client itself refuses what the message cannot hold.
    done = run(server.address, "train", str(corpus), "--model", "m", "--max-steps", "-1")
    assert complaint(done, 2) == (
        "treadle: --max-steps cannot be -1: it must be a whole number from 1 to "
        "18,446,744,073,709,551,615"
    )
