"""Calls that make text."""

from __future__ import annotations

from typing import Any, Unpack

from treadle.client.connection import Connection
from treadle.client.errors import InputError
from treadle.client.items import Items
from treadle.client.options import GenerateOptions, check_one, make_request
from treadle.client.session import Session
from treadle.client.texts import Generation, Texts
from treadle.v1.sequence_pb2 import GenerateRequest


class Generating(Connection):
    """The calls that continue a prompt."""

    def generate(
        self, model: str = "", prompt: str = "", **options: Unpack[GenerateOptions]
    ) -> Generation:
        """Continues a prompt.

        Args:
            model: The model's name, or NAME@ALIAS; empty where `job=` names a job.
            prompt: The text to go on from.
            **options: The other fields of GenerateRequest: `temperature=0.8, seed=1, ...`;
                `job="..."` takes the weights of a job, running or not, the last ones or,
                with `job_weights="best"`, the best ones. A token is its number, its text, or
                `END`: `banned_tokens=["e", END]`, `token_biases={"a": -1.5}`.

        Returns:
            The generation: iterate over its pieces of text as they are made, then call
            `result()` for the stop reason, the seed and the counts.

        Raises:
            InputError: An option is wrong, or both a model and a job are named, or neither.
        """
        check_one(model, options.get("job", ""))
        if "n" in options:
            raise InputError("generate makes one text: generate_many(..., n=...) makes several")
        request = make_request(GenerateRequest, model=model, prompt=prompt, **options)
        return Generation(self._stub.Generate(request, timeout=self._timeout_s), self.address)

    def generate_text(
        self, model: str = "", prompt: str = "", **options: Unpack[GenerateOptions]
    ) -> str:
        """Continues a prompt and returns the whole text; see `generate`.

        Raises:
            InputError: An option is wrong.
            ServerError: The call failed.
        """
        with self.generate(model, prompt, **options) as generation:
            return "".join(generation)

    def generate_many(
        self,
        model: str = "",
        prompt: str = "",
        n: int = 20,
        *,
        unique: bool = False,
        novel: bool = False,
        max_tries: int | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Items:
        """Continues a prompt n times, all at once.

        Args:
            model: The model's name, or NAME@ALIAS; empty where `job=` names a job.
            prompt: The text to go on from.
            n: How many texts; more than 256 are several calls.
            unique: Only texts that differ from each other: more are made until there are n.
            novel: Only texts that are new (`result.novelty.is_new`), likewise. Needs a model
                with a novelty index.
            max_tries: With `unique` or `novel`: the most texts to make. Default: 10 n.
            **options: As `generate` takes them. The seeds of later calls are derived from the
                first one's, so the same seed gives the same texts.

        Returns:
            The texts: iterate over them; afterwards `missing` tells how many of the n could not
            be found.

        Raises:
            InputError: An option is wrong, or both a model and a job are named, or neither.
        """
        check_one(model, options.get("job", ""))
        given: dict[str, Any] = {"model": model, "prompt": prompt, **options}
        make_request(GenerateRequest, **given)  # so that a wrong option is told here and now

        def call(count: int, offset: int, made: dict[str, Any]) -> Texts:
            request = make_request(GenerateRequest, n=count, **made)
            return Texts(
                self._stub.Generate(request, timeout=self._timeout_s), self.address, offset
            )

        return Items(call, n, unique=unique, novel=novel, max_tries=max_tries, options=given)

    def session(self, model: str, **options: Unpack[GenerateOptions]) -> Session:
        """Begins a conversation whose state the caller keeps, or goes on with a stored one.

        Args:
            model: The model's name, or NAME@ALIAS.
            **options: Options of every reply. `state=` goes on from a stored state, and
                `version=` says which version it is of (default: the newest).

        Returns:
            The session; nothing is asked of the server before its first `send`.

        Raises:
            InputError: No stored model is named.
        """
        return Session(self, model, options)
