"""`treadle models`: list, show and delete what the server keeps."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING

from treadle.client.commands.common import (
    Commands,
    add_connection,
    add_json,
    add_version,
    connect,
)
from treadle.client.console import Console

if TYPE_CHECKING:
    from treadle.v1.sequence_pb2 import Model


def add_parsers(commands: Commands) -> None:
    """Adds `treadle models` and what can be done to them."""
    parser = commands.add_parser(
        "models",
        help="list, show or delete models",
        description="List the newest version of every model, or show or delete one.",
    )
    parser.set_defaults(run=run_list)
    actions = parser.add_subparsers(title="actions", dest="action")
    listing = actions.add_parser("list", help="list the newest version of every model (default)")
    listing.set_defaults(run=run_list)
    show = actions.add_parser("show", help="describe one model")
    show.add_argument("model", metavar="NAME")
    add_version(show, "the model's version (default: the newest)")
    show.set_defaults(run=run_show)
    delete = actions.add_parser("delete", help="delete a model")
    delete.add_argument("model", metavar="NAME")
    add_version(delete, "the version to delete (default: all of them)")
    delete.set_defaults(run=run_delete)
    for each in (parser, listing, show, delete):
        add_json(each)
        add_connection(each)


def run_list(args: argparse.Namespace, console: Console) -> None:
    """Lists the newest version of every model."""
    from treadle.client.json_lines import to_line

    with connect(args) as client:
        if getattr(args, "json", False):
            for model in client.models():
                console.line(to_line(model))
            return
        rows = [_row(model) for model in client.models()]
    if rows:
        head = ("name", "version", "network", "tokens", "vocabulary", "parameters", "valid loss")
        console.table((*head, "size", "stored"), rows)
    else:
        console.line("no models yet")


def _row(model: Model) -> tuple[str, ...]:
    """Describes a model in a row of the list."""
    from treadle.client.options import field_word
    from treadle.client.progress import network_text

    valid = model.training.valid_loss if model.training.HasField("valid_loss") else None
    return (
        model.name,
        str(model.version),
        network_text(model.network),
        field_word(model.tokenizer, "kind"),
        f"{model.vocabulary_size:,}",
        f"{model.parameter_count:,}",
        "-" if valid is None else f"{valid:.3f}",
        size_text(model.size_bytes),
        _time(model),
    )


def _time(model: Model) -> str:
    """Writes when a model was stored, to the second, in UTC."""
    return model.create_time.ToDatetime().isoformat(" ", "seconds") + " UTC"


def run_show(args: argparse.Namespace, console: Console) -> None:
    """Describes one version of a model."""
    from treadle.client.json_lines import to_line

    with connect(args) as client:
        reply = client.get_model(args.model, version=args.version)
    if getattr(args, "json", False):
        console.line(to_line(reply))
        return
    print_facts([*_facts(reply.model), ("versions", _numbers(reply.versions))], console)


def _facts(model: Model) -> list[tuple[str, str]]:
    """Describes a model at length."""
    from treadle.client.options import field_word
    from treadle.client.progress import duration_text, network_text

    dropout = f", dropout {model.network.dropout!r}" if model.network.dropout else ""
    facts = [
        ("name", model.name),
        ("version", str(model.version)),
        ("stored", _time(model)),
        (
            "network",
            f"{network_text(model.network)}, embedding {model.network.embedding_size}{dropout}",
        ),
        ("tokens", f"{field_word(model.tokenizer, 'kind')}, {model.vocabulary_size:,} of them"),
        ("unknown symbols", field_word(model.tokenizer, "unknown_policy")),
        ("layout", field_word(model, "layout")),
        ("parameters", f"{model.parameter_count:,}"),
        ("file", f"{size_text(model.size_bytes)}, SHA-256 {model.sha256}"),
    ]
    if model.HasField("training"):
        record = model.training
        tokens = f"{record.steps:,} steps, {record.tokens_seen:,} tokens"
        time = duration_text(record.elapsed_s)
        optimizer = record.spec.optimizer
        products = f", {field_word(optimizer, 'precision')} products" if optimizer.precision else ""
        facts.append(("trained", f"{tokens}, {time}{products}"))
        facts.append(("train loss", f"{record.train_loss:.4f} nats"))
        if record.HasField("valid_loss"):
            facts.append(("validation loss", f"{record.valid_loss:.4f} nats"))
        facts.append(("ended by", record.ended_by))
    return facts


def run_delete(args: argparse.Namespace, console: Console) -> None:
    """Deletes one version of a model, or all of them."""
    from treadle.client.json_lines import to_line

    with connect(args) as client:
        reply = client.delete_model(args.model, version=args.version)
    if getattr(args, "json", False):
        console.line(to_line(reply))
        return
    plural = "s" if len(reply.versions) > 1 else ""
    console.line(f"deleted {args.model} version{plural} {_numbers(reply.versions)}")


def _numbers(versions: Iterable[int]) -> str:
    """Lists version numbers."""
    return ", ".join(map(str, versions))


def print_facts(facts: list[tuple[str, str]], console: Console) -> None:
    """Prints names and values, one pair a line."""
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        console.line(f"{name.ljust(width)}  {value}".rstrip())


def size_text(count: float) -> str:
    """Writes a number of bytes with three digits: "21.3 MB"."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
