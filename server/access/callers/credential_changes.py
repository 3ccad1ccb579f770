"""`credential_changes` says for the audit log what a new callers file changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice

from treadle.server.access.audit.audit_log import Entry
from treadle.server.access.caller import Caller
from treadle.server.errors import shorten

_MOST = 100
"""Credentials that an entry lists; it has the number of all."""

_MOST_BYTES = 200


def credential_changes(
    before: Mapping[str, Caller], after: Mapping[str, Caller]
) -> Iterable[Entry]:
    """Yields an entry for the credentials that were added, removed or changed, if there are any.

    Args:
        before: The callers by their credentials, as the earlier file had them.
        after: The same of the new file.
    """
    kinds = {
        "added": [after[key] for key in after.keys() - before.keys()],
        "removed": [before[key] for key in before.keys() - after.keys()],
        "changed": [
            after[key] for key in after.keys() & before.keys() if _differ(after[key], before[key])
        ],
    }
    entry: Entry = {"method": "callers file", "status": "OK"}
    for kind, callers in kinds.items():
        if callers:
            callers.sort(key=lambda caller: (caller.name, caller.credential_id))
            entry[kind] = [_shown(caller) for caller in islice(callers, _MOST)]
            entry[f"{kind}_count"] = len(callers)
    if any(kinds.values()):
        yield entry


def _differ(one: Caller, other: Caller) -> bool:
    return one != other or one.valid_until_s != other.valid_until_s


def _shown(caller: Caller) -> Entry:
    return {
        "caller": shorten(caller.name, _MOST_BYTES),
        "role": caller.role.title,
        "credential": shorten(caller.credential_id, _MOST_BYTES),
    }
