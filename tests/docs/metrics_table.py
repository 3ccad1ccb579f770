"""The table of metrics in docs/observability.md, as the server defines them.

`PYTHONPATH=tests python -m docs.metrics_table` writes it.
"""

from __future__ import annotations

from pathlib import Path

import treadle.server.access.quota_book  # noqa: F401 - some labels have their values from here
from treadle.server.telemetry.metrics import REGISTRY
from treadle.server.telemetry.server_state import READINGS

PAGE = Path(__file__).parents[2] / "docs/observability.md"

_BEGIN = "| metric | type | labels | meaning |\n|---|---|---|---|\n"


def metrics_table() -> str:
    """Returns the rows of the table, one for each metric."""
    rows = [f"| `{each.name}` | gauge | {_shown(each.label)} | {each.text} |" for each in READINGS]
    for collector in REGISTRY._collector_to_names:
        labels = getattr(collector, "_labelnames", None)
        if labels is None:  # of the process and of Python, as every program in Python has them
            continue
        [family] = collector.collect()
        name = family.name + ("_total" if family.type == "counter" else "")
        text = family.documentation
        rows.append(f"| `{name}` | {family.type} | {_shown(*labels)} | {text} |")
    return "\n".join(sorted(rows)) + "\n"


def _shown(*labels: str) -> str:
    return ", ".join(f"`{label}`" for label in labels if label)


def written_table(page: str) -> str:
    """Returns the rows that a page has."""
    return page.partition(_BEGIN)[2].partition("\n\n")[0] + "\n"


if __name__ == "__main__":
    text = PAGE.read_text("utf-8")
    PAGE.write_text(text.replace(written_table(text), metrics_table()), "utf-8")
