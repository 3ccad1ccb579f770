"""What a server keeps: its models and its jobs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

from treadle.client.connection import Connection
from treadle.client.errors import InputError
from treadle.client.options import make_request
from treadle.v1.sequence_pb2 import (
    CancelJobRequest,
    DeleteAliasRequest,
    DeleteJobRequest,
    DeleteModelRequest,
    DeleteModelResponse,
    GetJobRequest,
    GetModelRequest,
    GetModelResponse,
    GetServerInfoRequest,
    GetServerInfoResponse,
    Job,
    ListJobsRequest,
    ListModelsRequest,
    Model,
    PauseJobRequest,
    ResumeJobRequest,
    SetAliasRequest,
)

State: TypeAlias = Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"] | int
"""A word, or the number of a `treadle.v1.JobState`."""


class Management(Connection):
    """The calls that list, describe and change models and jobs.

    Each raises a ServerError where the call fails, and an InputError where an argument is of
    the wrong type.
    """

    def models(self, *, page_size: int = 0) -> Iterator[Model]:
        """Yields the newest version of every model by name, fetching page after page."""
        token = ""
        while True:
            request = make_request(ListModelsRequest, page_size=page_size, page_token=token)
            page = self._call(self._stub.ListModels, request)
            yield from page.models
            token = page.next_page_token
            if not token:
                return

    def get_model(self, model: str, *, version: int = 0) -> GetModelResponse:
        """Describes a model, and lists its versions."""
        request = make_request(GetModelRequest, model=model, version=version)
        return self._call(self._stub.GetModel, request)

    def delete_model(
        self,
        model: str,
        *,
        version: int | None = None,
        all_versions: bool = False,
        force: bool = False,
    ) -> DeleteModelResponse:
        """Deletes one version of a model, or all of them.

        Args:
            model: The model's name, without an alias.
            version: The version to delete, from 1.
            all_versions: Delete all versions, in place of one.
            force: Delete versions that aliases name as well, and these aliases.

        Returns:
            The versions deleted.

        Raises:
            InputError: Neither `version` nor `all_versions` is given, or both, or the version
                is less than 1.
            FailedPreconditionError: An alias names one of the versions; nothing was deleted.
        """
        if (version is None) == (not all_versions):
            raise InputError("give either the version to delete, or all_versions=True")
        if version is not None and not (isinstance(version, int) and version >= 1):
            raise InputError(f"version cannot be {version!r}: versions count from 1")
        request = make_request(
            DeleteModelRequest,
            model=model,
            version=version or 0,
            all_versions=all_versions,
            force=force,
        )
        return self._call(self._stub.DeleteModel, request)

    def server_info(self) -> GetServerInfoResponse:
        """Describes the server: version, limits, threads and load."""
        return self._call(self._stub.GetServerInfo, GetServerInfoRequest())

    def set_alias(self, model: str, alias: str, *, version: int = 0) -> Model:
        """Gives a version of a model a name, or moves the name there, in one step.

        Args:
            model: The model's name.
            alias: The alias; requests may then ask for `MODEL@ALIAS`.
            version: The version; 0 takes the newest.

        Returns:
            The version.
        """
        request = make_request(SetAliasRequest, model=model, alias=alias, version=version)
        return self._call(self._stub.SetAlias, request).model

    def delete_alias(self, model: str, alias: str) -> None:
        """Takes a name away from a version of a model; the version stays."""
        self._call(
            self._stub.DeleteAlias, make_request(DeleteAliasRequest, model=model, alias=alias)
        )

    def jobs(
        self, states: State | Sequence[State] = (), *, model: str = "", page_size: int = 0
    ) -> Iterator[Job]:
        """Yields jobs, newest first, fetching page after page.

        Args:
            states: Only jobs in this state, or in one of these: `"running"`, ...
            model: Only jobs that train this model.
            page_size: Jobs in one reply, up to 1,000; 0 leaves it to the server.
        """
        chosen = [states] if isinstance(states, str | int) else list(states)
        token = ""
        while True:
            request = make_request(
                ListJobsRequest, states=chosen, model=model, page_size=page_size, page_token=token
            )
            page = self._call(self._stub.ListJobs, request)
            yield from page.jobs
            token = page.next_page_token
            if not token:
                return

    def get_job(self, job: str) -> Job:
        """Describes a job."""
        return self._call(self._stub.GetJob, make_request(GetJobRequest, job=job)).job

    def cancel_job(self, job: str) -> Job:
        """Has a job end for good; one that has trained stores its model.

        Returns:
            The job as it is within a second: over, or still running for a moment.
        """
        return self._call(self._stub.CancelJob, make_request(CancelJobRequest, job=job)).job

    def pause_job(self, job: str) -> Job:
        """Has a job keep its whole state on disk and wait until it is resumed.

        Returns:
            The job as it is within a second: paused, or still running for a moment.
        """
        return self._call(self._stub.PauseJob, make_request(PauseJobRequest, job=job)).job

    def resume_job(self, job: str) -> Job:
        """Puts a paused job back into the queue; it goes on as if it had never paused."""
        return self._call(self._stub.ResumeJob, make_request(ResumeJobRequest, job=job)).job

    def delete_job(self, job: str) -> None:
        """Deletes a job that is over or paused; stored versions of models stay."""
        self._call(self._stub.DeleteJob, make_request(DeleteJobRequest, job=job))
