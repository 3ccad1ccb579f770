"""`ModelDownload` fetches the file of a version of a model, also across broken connections."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeAlias

from treadle.client.errors import InternalError, ServerError
from treadle.client.replicas.retry import Retry
from treadle.v1.sequence_pb2 import ExportModelRequest, ExportModelResponse, Model

if TYPE_CHECKING:
    from treadle.client.streaming import Call

Export: TypeAlias = "Callable[[ExportModelRequest], Call[ExportModelResponse]]"
"""Calls ExportModel."""


class ModelDownload:
    """The download of one file. Its bytes can be read once.

    Args:
        export: Calls ExportModel.
        request: Names the version.
        retry: Waits where the connection breaks.
        start: The bytes of the file that are there already, of any version.
    """

    def __init__(
        self,
        export: Export,
        request: ExportModelRequest,
        retry: Retry,
        start: Callable[[], Iterator[bytes]] | None = None,
    ) -> None:
        self._export = export
        self._request = request
        self._retry = retry
        self._hash = hashlib.sha256()
        self._received = 0
        self._call: Call[ExportModelResponse] | None = None
        for chunk in start() if start is not None else ():
            self._take(chunk)
        self.model = Model()
        """The version, once `open` was called."""

    @property
    def received(self) -> int:
        """Bytes of the file so far, with those that were there before."""
        return self._received

    def expect(self, model: Model) -> None:
        """Asks for the file of this version and for no other one.

        Args:
            model: The version, as an earlier download has described it.
        """
        self._request.model = model.name
        self._request.version = model.version
        self._request.sha256 = model.sha256

    def open(self) -> Model:
        """Asks for the file.

        Returns:
            The version that is sent.

        Raises:
            ServerError: The call failed.
        """
        while True:
            try:
                self.model = self._begin()
                return self.model
            except ServerError as error:
                self._retry.wait(error)

    def chunks(self) -> Iterator[bytes]:
        """Yields the rest of the file, and checks the hash of all of it.

        Raises:
            ServerError: The call failed.
            InternalError: The file that has arrived is not the one that was to be sent.
        """
        while self._received < self.model.size_bytes:
            try:
                if self._call is None:
                    self._reopen()
                chunk = self._next_chunk()
            except ServerError as error:
                self._call = None
                self._retry.wait(error)
                continue
            self._retry.succeeded()
            self._take(chunk)
            yield chunk
        self.close()
        if self._received > self.model.size_bytes or self._hash.hexdigest() != self.model.sha256:
            raise DamagedFileError(
                f"the file of {self._name} arrived with another SHA-256 than the server has noted: "
                "it is damaged there or on its way",
                code="DATA_LOSS",
            )

    def close(self) -> None:
        """Ends the call, if there is one."""
        if self._call is not None:
            self._call.cancel()
            self._call = None

    @property
    def _name(self) -> str:
        return f"version {self.model.version} of model {self.model.name!r}"

    def _begin(self) -> Model:
        """Makes the call, from the first byte that is missing on."""
        self._request.offset = self._received
        call = self._export(self._request)
        try:
            first = next(call)
        except StopIteration:
            text = "the server ended the stream before it sent anything"
            raise InternalError(text, broken=True) from None
        self._call = call
        return first.model

    def _next_chunk(self) -> bytes:
        """Returns the next bytes of the file, once they arrive.

        Raises:
            ServerError: The call failed, or ended too early, as a server may end it that shuts
                down.
        """
        assert self._call is not None
        try:
            return next(self._call).chunk
        except StopIteration:
            raise InternalError(
                f"the file of {self._name} ended after {self._received:,} of "
                f"{self.model.size_bytes:,} bytes",
                broken=True,
            ) from None

    def _reopen(self) -> None:
        """Makes the call again, for the same file."""
        self.expect(self.model)
        self._begin()

    def _take(self, chunk: bytes) -> None:
        self._hash.update(chunk)
        self._received += len(chunk)


class DamagedFileError(InternalError):
    """A file arrived with another hash than that of the version."""
