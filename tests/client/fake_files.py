"""The part of the fake server that would keep files, which no client asks for."""

from __future__ import annotations

from typing import Any

from treadle.v1.sequence_pb2_grpc import SequenceServiceServicer


class FakeFiles(SequenceServiceServicer):
    """Has no files."""

    UploadFile: Any = SequenceServiceServicer.UploadFile
    ListFiles: Any = SequenceServiceServicer.ListFiles
    GetFile: Any = SequenceServiceServicer.GetFile
    ReadFile: Any = SequenceServiceServicer.ReadFile
    DeleteFile: Any = SequenceServiceServicer.DeleteFile
