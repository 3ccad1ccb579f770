"""`probability` predicts the next character of a text by counts alone.

Interpolated character n-grams with Witten-Bell smoothing (Bell, Cleary and Witten 1990;
Chen and Goodman 1999, section 2.6), counted on the first 90 % of a file and measured on the last
10 % in one pass: the bar that a recurrent model has to clear. Run:

    python benchmarks/ngram_baseline.py examples/data/tinyshakespeare.txt 5
"""

from __future__ import annotations

import argparse
import math
from collections import Counter, defaultdict
from collections.abc import Sequence

from treadle.benchmarks.script import input_file


def count(text: str, order: int) -> list[dict[str, Counter[str]]]:
    """Counts which characters follow each context of 0 to order - 1 characters."""
    tables: list[dict[str, Counter[str]]] = []
    for length in range(order):
        table: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for place in range(length, len(text)):
            table[text[place - length : place]][text[place]] += 1
        tables.append(dict(table))
    return tables


def probability(tables: list[dict[str, Counter[str]]], context: str, symbol: str, V: int) -> float:
    """Returns p(symbol | context), each order interpolated with the one below it."""
    p = 1 / V
    for length, table in enumerate(tables):
        followers = table.get(context[len(context) - length :]) if length <= len(context) else None
        if followers is None:
            break
        kinds = len(followers)
        total = followers.total()
        p = (followers[symbol] + kinds * p) / (total + kinds)
    return p


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the mean loss of the validation part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("text", type=input_file)
    parser.add_argument("order", type=int, help="characters of the longest context, and one")
    options = parser.parse_args(arguments)
    path = options.text
    order = options.order
    text = path.read_text(encoding="utf-8")
    cut = int(len(text) * 0.9)
    tables = count(text[:cut], order)
    V = len(set(text))
    losses = [
        -math.log(probability(tables, text[place - order + 1 : place], text[place], V))
        for place in range(cut + 1, len(text))
    ]
    mean = math.fsum(losses) / len(losses)
    print(
        f"{path.name}: {order}-gram, {mean:.4f} nats per character over {len(losses):,} characters"
    )


if __name__ == "__main__":
    main()
