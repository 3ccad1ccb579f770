"""`POLICIES` are the treatments of symbols that a model does not have, by their words."""

from __future__ import annotations

from treadle.v1 import sequence_pb2 as pb

POLICIES = {
    "error": pb.UNKNOWN_POLICY_ERROR,
    "skip": pb.UNKNOWN_POLICY_SKIP,
    "unknown": pb.UNKNOWN_POLICY_UNKNOWN,
}
"""The policies of the contract."""
