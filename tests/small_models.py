"""Models of a few units: some with random weights, some that know the next token for certain."""

from __future__ import annotations

from typing import Any

from treadle.model.config import NetworkConfig, TokenizerConfig
from treadle.model.enums import Cell, CorpusLayout, TokenizerKind, UnknownPolicy
from treadle.model.generation.output import GenerateResult, Piece
from treadle.model.model import Model
from treadle.model.network.parameters import Parameters
from treadle.model.network.shape import Shape
from treadle.model.scoring.token_score import TokenScore
from treadle.model.tokenizers.base import Tokenizer
from treadle.model.tokenizers.build import build_tokenizer

TEXT = "abc cab bca, a cab abc!\nab ca bc, bb aa\n"


def model_of(
    kind: TokenizerKind = TokenizerKind.CHARACTERS,
    layout: CorpusLayout = CorpusLayout.TEXT,
    policy: UnknownPolicy | None = None,
    **network: Any,
) -> Model:
    """A model of random weights, three times as large as they begin, so that it has opinions."""
    sizes = {"cell": Cell.LSTM, "hidden_size": 5, "embedding_size": 3, **network}
    tokenizer = build_tokenizer(TokenizerConfig(kind, unknown_policy=policy), [TEXT], layout)
    config = NetworkConfig(**sizes)
    parameters = Parameters.initial(Shape.of(config, tokenizer.vocabulary_size), seed=1)
    parameters.flat *= 3
    return Model(config, tokenizer, parameters)


def chain_of(tokenizer: Tokenizer, tokens: list[int]) -> Model:
    """A model that knows for sure: after each of these tokens comes the next, and then the first.

    One hidden unit a token says which was read last.
    """
    assert len(set(tokens)) == len(tokens)
    config = NetworkConfig(Cell.RNN, hidden_size=len(tokens), layers=1, embedding_size=0)
    parameters = Parameters(Shape.of(config, tokenizer.vocabulary_size))
    for unit, token in enumerate(tokens):
        parameters.stacks.Wx0[token, unit] = 10
        parameters.stacks.Wy[unit - 1, token] = 100
    return Model(config, tokenizer, parameters, default_context=tokens[-1])


def letters(text: str = "abcdefghij") -> Model:
    """Cycles from letter to letter."""
    tokenizer = build_tokenizer(TokenizerConfig(), [text])
    return chain_of(tokenizer, tokenizer.encode(text).tolist())


def bytes_of(text: str) -> Model:
    """Cycles from byte to byte."""
    tokenizer = build_tokenizer(TokenizerConfig(TokenizerKind.BYTES))
    return chain_of(tokenizer, list(text.encode()))


def result_of(pieces: list[Piece]) -> GenerateResult:
    """The result of a whole generation, which only the last piece has."""
    assert [piece.result is None for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    result = pieces[-1].result
    assert result is not None
    return result


def tokens_of(pieces: list[Piece]) -> list[TokenScore]:
    return [token for piece in pieces for token in piece.tokens]


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)
