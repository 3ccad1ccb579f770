"""`int8` compares generating and scoring with int8 weights to float32 and to int8 elsewhere."""

from __future__ import annotations

from treadle.benchmarks import settings as cases
from treadle.benchmarks.progress import Say
from treadle.benchmarks.race import Row
from treadle.benchmarks.rivals import (
    Entrant,
    Workers,
    earlier,
    jax_decoding,
    jax_decoding_all_cores,
    onnxruntime_int8_scoring,
    onnxruntime_scoring,
    pytorch_decoding,
    pytorch_int8_decoding,
    pytorch_int8_scoring,
)
from treadle.benchmarks.sections import checked
from treadle.benchmarks.settings import Case, Settings

Rivals = dict[str, list[Entrant]]


def int8(workers: Workers, settings: Settings, say: Say) -> dict[str, list[Row]]:
    """Compares one session, many sessions together, and scoring a batch.

    Returns:
        Rows by part: `decode`, `sessions` and `score`.
    """
    return {
        "decode": [_decode(workers, settings, case, say) for case in cases.decode_cases(settings)],
        "sessions": [
            _sessions(workers, settings, case, say) for case in cases.sessions_cases(settings)
        ],
        "score": [
            _score(workers, settings, case, say) for case in cases.int8_score_cases(settings)
        ],
    }


def _row(workers: Workers, settings: Settings, case: Case, rivals: Rivals) -> Row:
    """Holds ours in int8 against ours in float32 and others, all checked."""
    ours = Entrant(workers.ours, case, options={"int8": True})
    rivals = {"fp32": [Entrant(workers.ours_again, case)], **earlier(workers, case), **rivals}
    return checked(ours, rivals, settings)


def _decode(workers: Workers, settings: Settings, case: Case, say: Say) -> Row:
    say(f"int8, decode {case.label}")
    rivals = {
        "jax": jax_decoding(workers.jax_one_core, case),
        "jax_all_cores": jax_decoding_all_cores(workers, case),
        "pytorch": pytorch_decoding(workers, case),
        "pytorch_int8": pytorch_int8_decoding(workers, case),
    }
    return _row(workers, settings, case, rivals)


def _sessions(workers: Workers, settings: Settings, case: Case, say: Say) -> Row:
    say(f"int8, {case.rows} sessions {case.label}")
    return _row(workers, settings, case, {"pytorch_int8": pytorch_int8_decoding(workers, case)})


def _score(workers: Workers, settings: Settings, case: Case, say: Say) -> Row:
    say(f"int8, score {case.label}")
    rivals = {
        "onnxruntime": onnxruntime_scoring(workers, case),
        "onnxruntime_int8": onnxruntime_int8_scoring(workers, case),
        "pytorch_int8": pytorch_int8_scoring(workers, case),
    }
    return _row(workers, settings, case, rivals)
