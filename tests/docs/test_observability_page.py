"""docs/observability.md has the metrics of the server, and the queries of it are right."""

from __future__ import annotations

import re

import promql_parser

from .metrics_table import PAGE, metrics_table, written_table


def test_the_page_has_every_metric() -> None:
    written = written_table(PAGE.read_text("utf-8"))
    assert written == metrics_table(), "run `PYTHONPATH=tests python -m docs.metrics_table`"


def test_every_query_of_the_page_can_be_parsed() -> None:
    text = PAGE.read_text("utf-8")
    queries = re.findall(r"```text\n# PromQL[^\n]*\n(.*?)```", text, re.DOTALL)
    assert queries
    for query in queries:
        for line in query.strip().split("\n\n"):
            promql_parser.parse(line)
