"""Calls that learn from a stream."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Unpack

from treadle.client.connection import Connection
from treadle.client.learn_streams import LearnStream, LearntPieces, Step, learn_requests
from treadle.client.options import LearnStreamOptions, make_request
from treadle.client.pieces import Mailbox, Source
from treadle.v1.sequence_pb2 import LearnStreamRequest, LearnStreamSpec


class Learning(Connection):
    """The calls that predict a stream and learn from it, on a copy of the model of their own."""

    def learn_stream(
        self,
        model: str,
        pieces: Iterable[Step],
        *,
        timeout_s: float | None = None,
        **options: Unpack[LearnStreamOptions],
    ) -> LearntPieces:
        """Predicts a stream as it comes, and learns from it.

        Args:
            model: The model to begin with: NAME or NAME@ALIAS.
            pieces: Texts, or `Piece(text, end)`, to predict and then to learn from; they are
                taken and sent in the background. `Snapshot()`, `RollBack()` and `Publish()` of
                the contract may stand between them.
            timeout_s: The longest that the call may take.
            **options: The other fields of LearnStreamSpec: `learning_rate=0.1, ranks=True, ...`.
                `on_error="skip"` continues after a piece that cannot be read, which is answered
                with an `error`, as if it had not been sent; `"stop"` reads nothing more and can
                still publish; by default the call ends, and what was learned is lost.

        Returns:
            The scores: iterate over them, one a piece.

        Raises:
            InputError: An option is wrong.
        """
        spec = make_request(LearnStreamSpec, model=model, **options)
        source = Source(learn_requests(spec, pieces))
        call = self._stub.LearnStream(source.requests(), timeout=timeout_s)
        return LearntPieces(source, call, self.address)

    def open_learn_stream(
        self,
        model: str,
        *,
        timeout_s: float | None = None,
        **options: Unpack[LearnStreamOptions],
    ) -> LearnStream:
        """Begins to learn from a stream whose pieces are sent one by one; use it with `with`.

        Args:
            model: The model to begin with: NAME or NAME@ALIAS.
            timeout_s: The longest that the call may take.
            **options: The other fields of LearnStreamSpec.

        Returns:
            The stream: `learn`, `predict`, `snapshot`, `roll_back` and `publish`.

        Raises:
            InputError: An option is wrong.
        """
        spec = make_request(LearnStreamSpec, model=model, **options)
        mailbox = Mailbox(LearnStreamRequest(spec=spec))
        call = self._stub.LearnStream(mailbox.requests(), timeout=timeout_s)
        return LearnStream(mailbox, call, self.address)
