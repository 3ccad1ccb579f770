"""Every field of a request has a flag in the table, or a reason to have none."""

from __future__ import annotations

import argparse
import subprocess
import sys
from typing import Any

import pytest

from treadle.client.cli.options.field_flags import field_of, groups, table
from treadle.v1 import sequence_pb2 as v1

from .test_options import parser_of

POSITIONAL = "it is a word of the command"
PAGES = "the client asks for every page"
BY_FILE = "the client fills it in from the files"
OF_MODELS = "an option of one action of `treadle models`"
OF_TRAVEL = "`treadle models pull` or `push` fills it in, or has an option for it"
OF_PROGRAMS = "a command line has text; ids are for programs"
OF_RESUMING = "the client sets it when a connection breaks"
OF_HTTP = "files on the server are for clients of the HTTP address"

WITH_MODEL = ("generate", "score", "score-stream", "embed")
"""Commands that take the rows of `model` as well."""

WITHOUT_ROW: dict[str, str] = {
    "TrainSpec.model": "required, and so no setting with a default",
    "CorpusFile.name": BY_FILE,
    "CorpusFile.role": "it is --valid or --test",
    "CorpusFile.weight": "it is --weight FILE=W",
    "CorpusFile.sha256": BY_FILE,
    "GenerateRequest.model": POSITIONAL,
    "GenerateRequest.prompt": "it is --prompt, or a file",
    "GenerateRequest.n": "it is -n, which has no long name",
    "GenerateRequest.prompt_tokens": OF_PROGRAMS,
    "GenerateRequest.resume": OF_RESUMING,
    "GenerateRequest.resume_interval": OF_RESUMING,
    "EmbedRequest.tokens": OF_PROGRAMS,
    "ExportModelRequest.model": OF_TRAVEL,
    "ExportModelRequest.version": OF_TRAVEL,
    "ExportModelRequest.offset": OF_TRAVEL,
    "ExportModelRequest.sha256": OF_TRAVEL,
    "ImportModelRequest.chunk": OF_TRAVEL,
    "ImportModelSpec.model": OF_TRAVEL,
    "ImportModelSpec.alias": OF_TRAVEL,
    "ImportModelSpec.reuse_identical": OF_TRAVEL,
    "ImportModelSpec.sha256": OF_TRAVEL,
    "ImportModelSpec.size_bytes": OF_TRAVEL,
    "FileSpec.name": OF_HTTP,
    "UploadFileRequest.chunk": OF_HTTP,
    "ListFilesRequest.page_size": OF_HTTP,
    "ListFilesRequest.page_token": OF_HTTP,
    "GetFileRequest.file": OF_HTTP,
    "ReadFileRequest.file": OF_HTTP,
    "DeleteFileRequest.file": OF_HTTP,
    "ScoreRequest.model": POSITIONAL,
    "ScoreRequest.texts": "they are FILE, or --text",
    "ScoreStreamSpec.model": POSITIONAL,
    "LearnStreamSpec.model": POSITIONAL,
    "NetworkSpec.softmax_clusters": "chosen from the corpus; the command needs no other",
    "EmbedRequest.model": POSITIONAL,
    "EmbedRequest.texts": POSITIONAL,
    "WatchJobRequest.job": POSITIONAL,
    "GetJobRequest.job": POSITIONAL,
    "CancelJobRequest.job": POSITIONAL,
    "PauseJobRequest.job": POSITIONAL,
    "ResumeJobRequest.job": POSITIONAL,
    "DeleteJobRequest.job": POSITIONAL,
    "ListJobsRequest.page_size": PAGES,
    "ListJobsRequest.page_token": PAGES,
    "ListModelsRequest.page_size": PAGES,
    "ListModelsRequest.page_token": PAGES,
    "GetModelRequest.model": POSITIONAL,
    "GetModelRequest.version": OF_MODELS,
    "DeleteModelRequest.model": POSITIONAL,
    "DeleteModelRequest.version": OF_MODELS,
    "DeleteModelRequest.all_versions": OF_MODELS,
    "DeleteModelRequest.force": OF_MODELS,
    "SetAliasRequest.model": POSITIONAL,
    "SetAliasRequest.alias": POSITIONAL,
    "SetAliasRequest.version": OF_MODELS,
    "DeleteAliasRequest.model": POSITIONAL,
    "DeleteAliasRequest.alias": POSITIONAL,
}
"""Fields of requests that have no row in the table, and why."""


def commands() -> list[str]:
    return [name for name in table() if "requests" in table()[name]]


def rows() -> list[tuple[str, str, str]]:
    """Every row, with its command and group."""
    return [
        (command, group, name)
        for command in commands()
        for group in groups(command)
        for name in table()[command][group]
    ]


def row_of(command: str, group: str, name: str) -> dict[str, Any]:
    return {**table()["common"].get(name, {}), **table()[command][group][name]}


def set_by_rows() -> set[str]:
    """The fields that rows set, as `Message.field`."""
    found = set()
    shared = [("model", "options", name) for name in table()["model"]["options"]]
    for command in commands():
        own = [row for row in rows() if row[0] == command]
        for of, group, name in own + (shared if command in WITH_MODEL else []):
            row = row_of(of, group, name)
            for request in table()[command]["requests"]:
                message = v1.DESCRIPTOR.message_types_by_name[request]
                name_of_field = field_of(command, name, row).name
                parts = [message, *(part.message_type for part in message.fields)]
                found |= {
                    f"{part.name}.{name_of_field}"
                    for part in parts
                    if part is not None and name_of_field in part.fields_by_name
                }
    return found


def request_fields() -> set[str]:
    """Every field of every request that a caller could want to set."""
    found = set()
    for name, message in v1.DESCRIPTOR.message_types_by_name.items():
        if name.endswith(("Request", "Spec")) or name == "CorpusFile":
            found |= {
                f"{name}.{field.name}"
                for field in message.fields
                if field.message_type is None or field.is_repeated
                if not (field.containing_oneof and name.endswith("StreamRequest"))
            }
    return {each for each in found if not each.startswith("TrainRequest.")}


def test_every_field_has_a_row_or_a_reason() -> None:
    unknown = request_fields() - set_by_rows() - set(WITHOUT_ROW)
    assert not unknown, f"give these a row in flags.toml, or a reason here: {sorted(unknown)}"


def test_no_reason_is_given_for_nothing() -> None:
    assert not set(WITHOUT_ROW) - request_fields()
    assert not set(WITHOUT_ROW) & set_by_rows()


@pytest.mark.parametrize(("command", "group", "name"), rows())
def test_a_row_is_a_flag_of_its_field(command: str, group: str, name: str) -> None:
    row = row_of(command, group, name)
    field = field_of(command, name, row)
    parser = parser_of(command)
    action = next(a for a in parser._actions if f"--{name}" in a.option_strings)
    assert action.dest == row.get("dest", field.name)
    if field.enum_type is not None and action.nargs != 0:
        words = [value.name.lower() for value in field.enum_type.values if value.number]
        assert all(any(w.endswith(word) for w in words) for word in action.choices or ("?",))
    known = {"help", "range", "default", "field", "dest", "also", "metavar", "type", "words"}
    assert set(row) <= known | {"const", "initial", "exclusive"}, row


def test_a_new_field_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(table()["generate"]["sampling"], "top-k")
    assert "GenerateRequest.top_k" in request_fields() - set_by_rows() - set(WITHOUT_ROW)


def test_a_row_without_a_field_is_refused() -> None:
    with pytest.raises(KeyError, match="no request of `treadle train` has a field for --knots"):
        field_of("train", "knots", {"help": "x"})


def test_the_help_of_all_commands_builds_none_of_them() -> None:
    late = [f"treadle.client.cli.{name}" for name in ("train", "generate", "models", "local")]
    late += ["tomllib", "google.protobuf", "rich", "shtab"]
    code = (
        "import sys; from treadle.client.cli.main import main; main(['--help'])\n"
        f"print([name for name in {late} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.endswith("[]\n")


def test_a_help_is_built_once() -> None:
    parser = parser_of("train")
    assert isinstance(parser, argparse.ArgumentParser)
    before = len(parser._actions)
    parser.format_help()
    assert len(parser._actions) == before
