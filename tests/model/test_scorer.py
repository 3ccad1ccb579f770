from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from small_models import TEXT, model_of

import treadle.model.network.workspace as workspace_module
import treadle.model.scoring.sequence_scorer as sequence_module
from treadle.kernels import reference
from treadle.model.config import NetworkConfig, TokenizerConfig
from treadle.model.data.batching import Batch
from treadle.model.data.corpus import TokenData
from treadle.model.data.validation_batches import ValidationBatches
from treadle.model.enums import Cell, CorpusLayout, TokenizerKind, UnknownPolicy
from treadle.model.errors import ConfigError, UnknownSymbolError
from treadle.model.model import Model
from treadle.model.network.parallel import Pool
from treadle.model.network.parameters import Parameters
from treadle.model.network.prefill import WINDOW
from treadle.model.network.shape import Shape
from treadle.model.network.shards import SHARD_ROWS
from treadle.model.network.workspace import pack_for_inference
from treadle.model.scoring.scorer import Scorer, mean_loss
from treadle.model.scoring.scores import Details, TextScore
from treadle.model.tokenizers.build import build_tokenizer

Ints = NDArray[np.int32]


def reference_scores(model: Model, tokens: Ints) -> NDArray[np.float64]:
    """log p of every token but the first, in float64."""
    weights: reference.Parameters = {
        name: array.astype(np.float64) for name, array in model.parameters.named().items()
    }
    cell = model.network.cell
    states = reference.zero_states(weights, cell, B=1)
    logits, _, _ = reference.network_forward(weights, cell, tokens[:-1, None], states)
    rows = logits[:, 0] - logits[:, 0].max(axis=1, keepdims=True)
    log_softmax = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return np.asarray(log_softmax[np.arange(tokens.size - 1), tokens[1:]], np.float64)


def scores_of(score: TextScore) -> list[float | None]:
    return [token.log_probability for token in score.tokens]


def check(model: Model, score: TextScore, before: Ints, tokens: Ints) -> None:
    """A score is that of the reference in every field."""
    sequence = np.concatenate((before, tokens)).astype(np.int32)
    expected = reference_scores(model, sequence)[max(before.size - 1, 0) :]
    unscored = tokens.size - expected.size
    found = scores_of(score)
    assert found[:unscored] == [None] * unscored
    np.testing.assert_allclose(np.array(found[unscored:], float), expected, rtol=1e-5, atol=1e-6)
    assert [token.id for token in score.tokens] == tokens.tolist()
    assert [token.text for token in score.tokens] == [
        model.tokenizer.token_text(token) for token in tokens.tolist()
    ]
    assert score.token_count == expected.size
    assert score.total_log_probability == pytest.approx(expected.sum(), rel=1e-5)
    assert score.mean_nats == pytest.approx(-expected.mean(), rel=1e-5)
    assert score.perplexity == pytest.approx(math.exp(-expected.mean()), rel=1e-5)


# ---------------------------------------------------------------- against the reference


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("embedding", [0, 3])
@pytest.mark.parametrize("cell", Cell)
def test_a_text_scores_what_the_reference_gives_it(cell: Cell, embedding: int, layers: int) -> None:
    model = model_of(cell=cell, embedding_size=embedding, layers=layers)
    text = TEXT[:20]
    tokens = model.tokenizer.encode(text)
    score = model.score(text)
    check(model, score, tokens[:0], tokens)
    assert score.character_count == 19
    assert score.bits_per_character == pytest.approx(
        -score.total_log_probability / math.log(2) / 19
    )


def test_words_and_ends_of_lines_are_the_targets_of_a_published_perplexity() -> None:
    text = " no it was n't <unk> monday \n but while the <unk> did n't fall \n\n apart N \n"
    words = len(text.split())
    lines = text.count("\n")
    tokenizer = build_tokenizer(TokenizerConfig(TokenizerKind.WHITESPACE), [text])
    config = NetworkConfig(hidden_size=5, embedding_size=3)
    shape = Shape.of(config, tokenizer.vocabulary_size)
    model = Model(config, tokenizer, Parameters.initial(shape, seed=1))
    assert model.score(text).token_count == words + lines - 1  # the first is read, not scored
    whole = model.score(text, "\n")
    assert whole.token_count == words + lines
    assert whole.perplexity == pytest.approx(
        math.exp(-whole.total_log_probability / (words + lines))
    )


@pytest.mark.parametrize("kind", TokenizerKind)
@pytest.mark.parametrize("layout", CorpusLayout)
@pytest.mark.parametrize("context", ["", "a", "cab abc! ab"])
def test_a_context_is_read_and_not_scored(
    layout: CorpusLayout, kind: TokenizerKind, context: str
) -> None:
    model = model_of(kind, layout)
    tokenizer = model.tokenizer
    text = " ca bc" if layout is CorpusLayout.LINES else " ca\nbc"
    before = tokenizer.encode(context)
    tokens = tokenizer.encode(text)
    if layout is CorpusLayout.LINES:
        assert tokenizer.begin is not None
        assert tokenizer.end is not None
        before = np.append(np.int32(tokenizer.begin), before)
        tokens = np.append(tokens, np.int32(tokenizer.end))
    score = model.score(text, context)
    check(model, score, before, tokens)
    first_scored = context != "" or layout is CorpusLayout.LINES
    symbols = tokens[0 if first_scored else 1 :]
    assert score.character_count == len(tokenizer.decode(symbols))


@pytest.mark.jit
@pytest.mark.parametrize("cell", Cell)
def test_a_text_of_many_windows_scores_what_the_reference_gives_it(cell: Cell) -> None:
    model = model_of(cell=cell, layers=2, hidden_size=33)
    tokens = model.tokenizer.encode(TEXT * 10)
    assert tokens.size > 5 * WINDOW
    check(model, model.score(TEXT * 10), tokens[:0], tokens)


# ---------------------------------------------------------------- edges


def test_a_first_token_without_context_has_no_score() -> None:
    model = model_of()
    score = model.score("a")
    assert scores_of(score) == [None]
    assert (score.token_count, score.character_count) == (0, 0)
    assert score.total_log_probability == 0
    assert (score.mean_nats, score.perplexity, score.bits_per_character) == (None, None, None)
    assert model.score("a", "b").token_count == 1


@pytest.mark.parametrize("context", ["", "a", "abc" * 40])
def test_an_empty_text_has_no_score(context: str) -> None:
    score = model_of().score("", context)
    assert score.total_log_probability == score.token_count == score.character_count == 0
    assert score.tokens == ()
    assert (score.mean_nats, score.perplexity, score.bits_per_character) == (None, None, None)


def test_an_empty_line_is_scored_by_its_end_alone() -> None:
    model = model_of(layout=CorpusLayout.LINES)
    score = model.score("")
    assert (score.token_count, score.character_count) == (1, 0)
    assert [token.id for token in score.tokens] == [model.tokenizer.end]
    assert [token.text for token in score.tokens] == [""]
    assert score.total_log_probability < 0
    assert score.bits_per_character is None
    assert score.perplexity == pytest.approx(math.exp(-score.total_log_probability))


def test_bytes_count_characters_and_not_bytes() -> None:
    score = model_of(TokenizerKind.BYTES).score("aé€")
    assert score.token_count == 5
    assert score.character_count == 2
    assert [token.text for token in score.tokens] == ["a", "", "", "", "", ""]
    assert score.bits_per_character == pytest.approx(-score.total_log_probability / math.log(2) / 2)


def test_an_unknown_token_stands_for_no_number_of_characters() -> None:
    """A word of any length costs one token, so nothing is said in bits per character."""
    model = model_of(TokenizerKind.WORDS, policy=UnknownPolicy.UNKNOWN)
    known = model.score("abc cab bca")
    unknown = model.score("abc incomprehensibilities cab")
    assert known.unknown_count == 0
    assert known.bits_per_character is not None
    assert unknown.unknown_count == 1
    assert unknown.bits_per_character is None
    assert unknown.perplexity is not None


def score_of(total: float, count: int) -> TextScore:
    """A score of so many tokens of one character each."""
    ids = np.zeros(count, np.int32)
    scores = np.full(count, total / count, np.float32)
    return TextScore(total, count, count, 0, ids, scores, model_of().tokenizer)


def test_a_perplexity_beyond_float_is_infinite() -> None:
    score = score_of(-1e6, 1)
    assert score.perplexity == math.inf
    assert score.mean_nats == 1e6
    assert score.bits_per_character == pytest.approx(1e6 / math.log(2))
    assert score_of(-1420.0, 2).perplexity == math.inf
    assert score_of(-1398.0, 2).perplexity == math.exp(699)


def test_an_impossible_text_has_a_finite_score() -> None:
    model = model_of(cell=Cell.RNN, embedding_size=0)
    model.parameters.stacks.by[0] = 1e30
    score = model.score("ab")
    assert math.isfinite(score.total_log_probability)
    assert score.total_log_probability < -1e29
    assert score.perplexity == math.inf


# ---------------------------------------------------------------- unknown symbols


def test_an_unknown_symbol_is_refused_by_default() -> None:
    model = model_of()
    with pytest.raises(UnknownSymbolError) as caught:
        model.score("abxc")
    assert (caught.value.symbol, caught.value.position) == ("x", 2)
    with pytest.raises(UnknownSymbolError, match="'y'"):
        model.score("abc", "ya")


def test_an_unknown_symbol_is_skipped_where_asked() -> None:
    model = model_of()
    assert model.score("abxc", "ya", UnknownPolicy.SKIP) == model.score("abc", "a")


def test_an_unknown_token_needs_a_model_that_has_one() -> None:
    with pytest.raises(ConfigError, match="has no unknown token"):
        model_of().score("abc", unknown_policy=UnknownPolicy.UNKNOWN)
    model = model_of(policy=UnknownPolicy.UNKNOWN)
    score = model.score("abxc")
    assert [token.id for token in score.tokens][2] == model.tokenizer.unknown
    assert [token.text for token in score.tokens] == ["a", "b", "", "c"]
    assert (score.token_count, score.character_count) == (3, 3)
    with pytest.raises(UnknownSymbolError):
        model.score("abxc", unknown_policy=UnknownPolicy.ERROR)


# ---------------------------------------------------------------- the same bits


@pytest.mark.parametrize("cell", Cell)
def test_the_window_does_not_change_a_bit(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(cell=cell, layers=2)
    text = TEXT * 4
    assert len(text) > 2 * WINDOW
    expected = model.score(text, "a")
    for window in (1, 7, 63, 1000):
        monkeypatch.setattr(sequence_module, "WINDOW", window)
        assert model.score(text, "a") == expected


def text_of_details(score: TextScore) -> list[tuple[int, list[int]]]:
    return [(token.rank, [other.id for other in token.alternatives]) for token in score.tokens]


@pytest.mark.parametrize("kind", [TokenizerKind.CHARACTERS, TokenizerKind.EVENTS])
@pytest.mark.parametrize("layout", CorpusLayout)
def test_details_tell_of_every_scored_token(layout: CorpusLayout, kind: TokenizerKind) -> None:
    model = model_of(kind, layout, layers=2)
    text = "abc cab " * 20 + "a"
    V = model.vocabulary_size
    plain = model.score(text)
    assert text_of_details(plain) == [(0, [])] * plain.ids.size
    for details in (Details(True), Details(alternatives=2), Details(True, V + 9)):
        score = model.score(text, details=details)
        assert score == plain
        assert score.log_probabilities.tobytes() == plain.log_probabilities.tobytes()
        first = score.ids.size - score.token_count
        assert text_of_details(score)[:first] == [(0, [])] * first
        for token in score.tokens[first:]:
            assert len(token.alternatives) == min(details.alternatives, V)
            if details.ranks:
                assert 1 <= token.rank <= V
    # The last details have all tokens in the order of their ranks.
    for token in score.tokens[first:]:
        values = [other.log_probability for other in token.alternatives]
        assert values == sorted(values, reverse=True)
        own = token.alternatives[token.rank - 1]
        assert (own.id, own.text, own.log_probability) == (
            token.id,
            token.text,
            token.log_probability,
        )


@pytest.mark.parametrize("cell", Cell)
@pytest.mark.parametrize("layout", CorpusLayout)
def test_a_state_continues_where_its_text_ends(layout: CorpusLayout, cell: Cell) -> None:
    model = model_of(cell=cell, layers=2, layout=layout)
    text = "abc cab bca, a cab abc!" * 6
    whole = model.score(text)
    for cut in (0, 1, 2, 63, 64, 65, 100, len(text)):
        before = model.score(text[:cut]).state
        assert before is not None
        state = model.read_state(model.state_bytes(before))
        rest = model.score(text[cut:], state=state)
        count = rest.token_count
        assert (
            rest.log_probabilities.tobytes()
            == whole.log_probabilities[whole.token_count - count :].tobytes()
        )
        assert count >= len(text) - max(cut, 1)
        there = model.score(text[cut:], text[:cut]).state
        assert there is not None
        assert rest.state is not None
        assert model.state_bytes(rest.state) == model.state_bytes(there)


def test_a_state_gives_generation_the_text_before_it() -> None:
    model = model_of(TokenizerKind.EVENTS, CorpusLayout.LINES)
    beginning = model.score("").state
    begun = model.score("abc cab").state
    assert beginning is not None
    assert begun is not None
    assert (beginning.held, begun.held) == (b"", b"\1")


def test_where_text_is_cut_from_its_context_does_not_change_a_bit() -> None:
    model = model_of(cell=Cell.GRU)
    text = TEXT * 2
    expected = scores_of(model.score(text))
    for cut in (1, 2, 40, 64, 65, 79):
        assert scores_of(model.score(text[cut:], text[:cut])) == expected[cut:]


@pytest.mark.parametrize("cell", Cell)
def test_a_vocabulary_too_large_for_a_table_does_not_change_a_bit(
    cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = model_of(cell=cell, layers=2).score(TEXT)
    monkeypatch.setattr(workspace_module, "TABLE_LIMIT", 0)
    model = model_of(cell=cell, layers=2)
    assert model.score(TEXT) == expected
    assert model.weights.table.shape[0] == 0


@pytest.mark.parametrize("threads", [1, 2])
def test_other_rows_do_not_change_a_bit(threads: int) -> None:
    model = model_of(layers=2)
    shape = model.parameters.shape
    weights = pack_for_inference(model.parameters)
    rng = np.random.default_rng(0)
    T = 4
    B = SHARD_ROWS + 3
    pool = Pool(threads)
    together = Scorer(shape, weights, B, T, pool)
    alone = [Scorer(shape, weights, 1, T, Pool(1)) for _ in range(B)]
    for number in range(3):
        tokens, targets = (rng.integers(0, shape.V, (T, B)).astype(np.int32) for _ in range(2))
        targets[rng.random((T, B)) < 0.3] = -1
        fresh = rng.random(B) < (1 if number == 0 else 0.3)
        found = together.log_probabilities(tokens, targets, fresh)
        assert np.all((found == 0) == (targets < 0))
        for row, scorer in enumerate(alone):
            cut = slice(row, row + 1)
            part = scorer.log_probabilities(tokens[:, cut], targets[:, cut], fresh[cut])
            assert part.tobytes() == np.ascontiguousarray(found[:, cut]).tobytes()
    pool.close()


def test_threads_may_share_a_model() -> None:
    model = model_of(layers=2)
    texts = [TEXT[start:] for start in range(8)]
    expected = [model.score(text) for text in texts]
    fresh = model_of(layers=2)
    with ThreadPoolExecutor(4) as executor:
        assert list(executor.map(fresh.score, texts)) == expected


# ---------------------------------------------------------------- a mean over batches


def batches_of(model: Model, text: str, streams: int) -> list[Batch]:
    data = TokenData(model.tokenizer.encode(text))
    return list(ValidationBatches(data, model.tokenizer, streams, window=8, context=10_000))


@pytest.mark.parametrize("streams", [1, 3, 20])
def test_rows_with_their_whole_context_have_the_mean_of_one_pass(streams: int) -> None:
    model = model_of()
    text = TEXT * 4
    weights = pack_for_inference(model.parameters)
    batches = batches_of(model, text, streams)
    assert batches[0].tokens.shape[1] == min(streams, (len(text) - 1) // 8)
    found = mean_loss(model.parameters.shape, weights, batches, Pool(1))
    assert found == pytest.approx(model.score(text).mean_nats, rel=1e-12)


@settings(max_examples=15, deadline=None)
@given(text=st.text("abc ", max_size=30), context=st.text("abc ", max_size=30))
def test_the_total_is_the_sum_and_the_rest_follows(text: str, context: str) -> None:
    score = model_of(cell=Cell.RNN, hidden_size=2, embedding_size=0).score(text, context)
    found = [value for value in scores_of(score) if value is not None]
    assert len(score.tokens) == len(text)
    assert score.token_count == score.character_count == len(found)
    assert len(found) == max(len(text) - (not context), 0)
    assert score.total_log_probability == pytest.approx(sum(found))
    assert all(value <= 0 for value in found)
