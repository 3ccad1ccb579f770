"""Every method of the service by every role, and by those who own something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest

from treadle.server.access.permissions import PERMISSIONS
from treadle.v1 import sequence_pb2 as pb

from .tenants import (
    CALLERS,
    FILE_PROBES,
    JOB_PROBES,
    READ_PROBES,
    WRITE_PROBES,
    Company,
    stored,
    upload,
)

CODES = {
    "O": grpc.StatusCode.OK,
    "D": grpc.StatusCode.PERMISSION_DENIED,
    "N": grpc.StatusCode.NOT_FOUND,
    "F": grpc.StatusCode.FAILED_PRECONDITION,  # past every check of rights
    "I": grpc.StatusCode.INVALID_ARGUMENT,  # the same, for the corpus is empty
}

CELLS: dict[str, tuple[str, Callable[[str], tuple[str, Any]]]] = {
    # of "reader", "user", "ann", "mate", "bob" and "root", with a thing of Ann's for each alone
    "GetServerInfo": ("OOOOOO", lambda _: ("GetServerInfo", pb.GetServerInfoRequest())),
    "ListModels": ("OOOOOO", lambda _: ("ListModels", pb.ListModelsRequest())),
    "ListJobs": ("OOOOOO", lambda _: ("ListJobs", pb.ListJobsRequest())),
    "GetModel": ("OOOONO", lambda _: READ_PROBES["GetModel"](model="team-a-names")),
    "Generate": ("DOOONO", lambda _: READ_PROBES["Generate"](model="team-a-names")),
    "Score": ("DOOONO", lambda _: READ_PROBES["Score"](model="team-a-names")),
    "ScoreStream": ("DOOONO", lambda _: READ_PROBES["ScoreStream"](model="team-a-names")),
    "Embed": ("DOOONO", lambda _: READ_PROBES["Embed"](model="team-a-names")),
    "LearnStream": ("DDOONO", lambda _: READ_PROBES["LearnStream"](model="team-a-names")),
    "Train": ("DDIIDI", lambda name: ("Train", upload(pb.TrainSpec(model=f"team-a-{name}"), b""))),
    "DeleteModel": (
        "DDOODO",
        lambda name: ("DeleteModel", pb.DeleteModelRequest(model=f"team-a-{name}", version=1)),
    ),
    "SetAlias": (
        "DDOODO",
        lambda name: ("SetAlias", pb.SetAliasRequest(model="team-a-other", alias=f"new-{name}")),
    ),
    "DeleteAlias": (
        "DDOODO",
        lambda name: ("DeleteAlias", pb.DeleteAliasRequest(model="team-a-other", alias=name)),
    ),
    "ExportModel": ("DDOONO", lambda _: READ_PROBES["ExportModel"](model="team-a-names")),
    "ImportModel": ("DDIIDI", lambda name: WRITE_PROBES["ImportModel"](f"team-a-{name}")),
    "UploadFile": ("DDOOOO", lambda _: ("UploadFile", stored("a file"))),
    "ListFiles": ("OOOOOO", lambda _: ("ListFiles", pb.ListFilesRequest())),
    "GetFile": ("NNONNO", lambda _: FILE_PROBES["GetFile"]("file-of-ann")),
    "ReadFile": ("NNONNO", lambda _: FILE_PROBES["ReadFile"]("file-of-ann")),
    "DeleteFile": ("DDONNO", lambda name: FILE_PROBES["DeleteFile"](f"file-{name}")),
    "GetJob": ("NNONNO", JOB_PROBES["GetJob"]),
    "WatchJob": ("NNONNO", JOB_PROBES["WatchJob"]),
    "CancelJob": ("DDONNO", JOB_PROBES["CancelJob"]),
    "PauseJob": ("DDFNNF", JOB_PROBES["PauseJob"]),
    "ResumeJob": ("DDFNNF", JOB_PROBES["ResumeJob"]),
    "DeleteJob": ("DDONNO", JOB_PROBES["DeleteJob"]),
    "Generate (job)": ("DNONNO", lambda _: JOB_PROBES["Generate (job)"]("ann-done")),
    "Generate (job, best)": ("DNONNO", lambda _: JOB_PROBES["Generate (job, best)"]("ann-done")),
    "Score (job)": ("DNONNO", lambda _: JOB_PROBES["Score (job)"]("ann-done")),
    "ScoreStream (job)": ("DNONNO", lambda _: JOB_PROBES["ScoreStream (job)"]("ann-done")),
    "Embed (job)": ("DNONNO", lambda _: JOB_PROBES["Embed (job)"]("ann-done")),
}
"""The status of each call by each caller."""


def test_every_method_is_in_the_matrix() -> None:
    assert {name for name in CELLS if " " not in name} == set(PERMISSIONS)
    assert {len(codes) for codes, _ in CELLS.values()} == {len(CALLERS)}


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("cell", CELLS)
def test_a_caller_may_do_what_its_role_and_its_things_allow(
    company: Company, cell: str, caller: str
) -> None:
    codes, request = CELLS[cell]
    expected = CODES[codes[list(CALLERS).index(caller)]]
    outcome = company[caller].outcome(*request(f"for-{caller}"))
    assert outcome.code is expected, outcome
    if expected is CODES["D"] and caller in ("reader", "user"):
        assert "requires the role trainer" in outcome.details or (
            caller == "reader" and "requires the role user" in outcome.details
        )
