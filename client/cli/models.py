"""The command `treadle models` lists, shows, names and deletes models."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING

from treadle.client.cli.connect import connect
from treadle.client.cli.display.console import Console
from treadle.client.cli.display.numbers import number_text
from treadle.client.cli.display.tables import (
    print_facts,
    print_message,
    print_rows,
    print_table,
    when_text,
)
from treadle.client.cli.options.output_options import add_output, output_format
from treadle.client.cli.options.parser import Commands
from treadle.client.cli.options.shared import add_connection, add_version
from treadle.client.cli.options.values import version_number
from treadle.client.cli.transfer.copy import add_copy
from treadle.client.cli.transfer.export import add_export
from treadle.client.cli.transfer.import_weights import add_import
from treadle.client.cli.transfer.pull import add_pull
from treadle.client.cli.transfer.push import add_push

if TYPE_CHECKING:
    from treadle.v1.sequence_pb2 import Model, NetworkSpec, TrainingRecord

_LIMITS = {
    "early_stopping_patience": "early stopping",
    "max_epochs": "its limit of epochs",
    "max_steps": "its limit of steps",
    "max_time_s": "its time limit",
    "max_tokens": "its limit of tokens",
    "max_wall_time_s": "its limit of wall-clock time",
}
"""What ends a run, by the name of the setting."""

PLAIN_COLUMNS = (
    "name",
    "version",
    "network.cell",
    "network.layers",
    "network.hidden_size",
    "tokenizer.kind",
    "vocabulary_size",
    "parameter_count",
    "training.valid_loss",
    "size_bytes",
    "create_time",
)
"""The columns of the list as plain rows. New ones come last."""


def add_parsers(commands: Commands) -> None:
    """Adds `treadle models` and its actions."""
    parser = commands.add_parser(
        "models",
        description="List the newest version of every model, or show, name or delete one.",
    )
    parser.set_defaults(run=run_list)
    actions = parser.add_subparsers(title="actions", dest="action")
    listing = actions.add_parser("list", help="list the newest version of every model (default)")
    listing.set_defaults(run=run_list)
    show = actions.add_parser(
        "show",
        help="describe one model",
        description="Describe one version of a model: its network, tokenizer, training and "
        "aliases.",
    )
    show.add_argument("model", metavar="NAME", help="the model's name, or NAME@ALIAS")
    add_version(show, "the model's version (1 or more; default: the newest)")
    show.set_defaults(run=run_show)
    delete = _add_delete(actions)
    alias, unalias = _add_aliases(actions)
    moving = [add(actions) for add in (add_pull, add_push, add_copy, add_import, add_export)]
    for each in moving:
        each.set_defaults(run=run_transfer)
    for each in (parser, listing, show, delete, alias, unalias, *moving):
        add_output(each)
        add_connection(each)


def _add_delete(actions: Commands) -> argparse.ArgumentParser:
    """Adds the action that deletes versions; which of them has no default."""
    delete = actions.add_parser(
        "delete",
        help="delete one version of a model, or all of them",
        description="Delete one version of a model, or all of them. A deleted version cannot be "
        "restored.",
    )
    delete.add_argument("model", metavar="NAME", help="the model's name")
    which = delete.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--version", metavar="N", type=version_number, help="the version to delete (1 or more)"
    )
    which.add_argument("--all", action="store_true", help="delete all versions")
    delete.add_argument(
        "--force",
        action="store_true",
        help="delete versions that have an alias as well, and their aliases",
    )
    delete.set_defaults(run=run_delete)
    return delete


def _add_aliases(actions: Commands) -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """Adds the actions that set and remove aliases."""
    alias = actions.add_parser(
        "alias",
        help="give a version an alias, or move the alias there",
        description="Give a version of a model an alias, or move the alias there, in one step. "
        "MODEL in other commands may then be NAME@ALIAS.",
    )
    alias.add_argument("model", metavar="NAME", help="the model's name")
    alias.add_argument("alias", metavar="ALIAS", help="the alias, such as stable")
    add_version(alias, "the version (1 or more; default: the newest)")
    alias.set_defaults(run=run_alias)
    unalias = actions.add_parser(
        "unalias",
        help="remove an alias from a version",
        description="Remove an alias of a model. The version that it points to stays.",
    )
    unalias.add_argument("model", metavar="NAME", help="the model's name")
    unalias.add_argument("alias", metavar="ALIAS", help="the alias")
    unalias.set_defaults(run=run_unalias)
    return alias, unalias


def run_list(args: argparse.Namespace, console: Console) -> None:
    """Lists the newest version of every model."""
    with connect(args) as client:
        if output_format(args) != "table":
            print_rows(client.models(), PLAIN_COLUMNS, output_format(args), console)
            return
        rows = [_row(model) for model in client.models()]
    if rows:
        head = ("name", "version", "network", "tokens", "vocabulary", "parameters", "valid loss")
        print_table(console, (*head, "size", "stored"), rows, cut=0, drop=(3, 4, 5, 8, 7, 2))
    else:
        console.line("no models yet")


def _row(model: Model) -> tuple[str, ...]:
    """Describes a model in a row of the list."""
    from treadle.client.cli.display.progress import network_text, size_text
    from treadle.client.messages.enums import field_word

    if model.damage:
        unknown = ("-",) * 4
        size = size_text(model.size_bytes)
        return model.name, str(model.version), "damaged", *unknown, size, "-"
    valid = model.training.valid_loss if model.training.HasField("valid_loss") else None
    return (
        model.name,
        str(model.version),
        network_text(model.network),
        field_word(model.tokenizer, "kind"),
        f"{model.vocabulary_size:,}",
        f"{model.parameter_count:,}",
        "-" if valid is None else number_text(valid),
        size_text(model.size_bytes),
        _time(model),
    )


def _ending(reason: str) -> str:
    """Writes why a run ended without the name of a field: `max_time_s reached after 9 steps`."""
    field, reached, rest = reason.partition(" reached after ")
    return f"{_LIMITS.get(field, field)} after {rest}" if reached else reason


def _time(model: Model) -> str:
    """Writes when a model was stored, to the second, in UTC."""
    return when_text(model.create_time)


def run_show(args: argparse.Namespace, console: Console) -> None:
    """Describes one version of a model."""
    with connect(args) as client:
        reply = client.get_model(args.model, version=args.version)
    if not print_message(reply, output_format(args), console):
        print_facts([*_facts(reply.model), ("versions", _numbers(reply.versions))], console)


def _facts(model: Model) -> list[tuple[str, str]]:
    """Describes a model at length."""
    from treadle.client.cli.display.progress import duration_text, size_text
    from treadle.client.messages.enums import field_word

    facts = [
        ("name", model.name),
        ("version", str(model.version)),
        ("stored", _time(model)),
        ("network", _network(model.network)),
        ("tokens", f"{field_word(model.tokenizer, 'kind')}, {model.vocabulary_size:,} of them"),
        ("unknown symbols", field_word(model.tokenizer, "unknown_policy")),
        ("layout", field_word(model, "layout")),
        ("novelty index", "yes" if model.novelty_index else "no"),
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
        facts += _losses(record)
        facts.append(("ended by", _ending(record.ended_by)))
        facts += [("note", notice) for notice in record.notices]
    if model.aliases:
        more = model.alias_count - len(model.aliases)
        others = f" and {more:,} more" if more > 0 else ""
        facts.append(("aliases", ", ".join(model.aliases) + others))
    return facts


def _network(network: NetworkSpec) -> str:
    """Describes a network at length."""
    from treadle.client.cli.display.progress import network_text
    from treadle.v1.sequence_pb2 import SOFTMAX_FACTORED

    parts = [network_text(network), f"embedding {network.embedding_size}"]
    if network.dropout:
        parts.append(f"dropout {network.dropout!r}")
    if network.output_dropout:
        parts.append(f"output dropout {network.output_dropout!r}")
    if network.tied_weights:
        parts.append("tied weights")
    if network.softmax == SOFTMAX_FACTORED:
        parts.append(f"factored softmax, {len(network.softmax_clusters)} clusters")
    return ", ".join(parts)


def _losses(record: TrainingRecord) -> list[tuple[str, str]]:
    """Returns a record's losses, and the part that each was measured on."""
    from treadle.client.cli.display.splits import test_split, valid_split

    facts = [("train loss", f"{number_text(record.train_loss, 4)} nats")]
    if record.HasField("valid_loss"):
        where = valid_split(record.valid_split, record.spec.data)
        facts.append(("validation loss", f"{number_text(record.valid_loss, 4)} nats{_on(where)}"))
    if record.HasField("test_loss"):
        where = test_split(record.test_split, record.spec.data)
        facts.append(("test loss", f"{number_text(record.test_loss, 4)} nats{_on(where)}"))
    if record.HasField("baseline_loss"):
        facts.append(("n-gram's loss", f"{number_text(record.baseline_loss, 4)} nats"))
    if 0 < record.weights_step < record.steps:
        facts.append(("weights", f"the best ones, of step {record.weights_step:,}"))
    return facts


def _on(where: str) -> str:
    """Returns the part that a loss was measured on, for a sentence."""
    return f" on {where}" if where else ""


def run_delete(args: argparse.Namespace, console: Console) -> None:
    """Deletes one version of a model, or all of them."""
    with connect(args) as client:
        reply = client.delete_model(
            args.model, version=args.version, all_versions=args.all, force=args.force
        )
    if print_message(reply, output_format(args), console):
        return
    plural = "s" if len(reply.versions) > 1 else ""
    console.line(f"deleted {args.model} version{plural} {_numbers(reply.versions)}")


def run_alias(args: argparse.Namespace, console: Console) -> None:
    """Sets an alias."""
    with connect(args) as client:
        model = client.set_alias(args.model, args.alias, version=args.version)
    if print_message(model, output_format(args), console):
        return
    console.line(f"{args.model}@{args.alias} is version {model.version}")


def run_transfer(args: argparse.Namespace, console: Console) -> None:
    """Moves the file of a model."""
    with connect(args) as client:
        outcome = args.transfer(args, console, client)
    if outcome is not None and not print_message(outcome.message, output_format(args), console):
        console.line(outcome.text)


def run_unalias(args: argparse.Namespace, console: Console) -> None:
    """Removes an alias."""
    from treadle.v1.sequence_pb2 import DeleteAliasResponse

    with connect(args) as client:
        client.delete_alias(args.model, args.alias)
    if print_message(DeleteAliasResponse(), output_format(args), console):
        return
    console.line(f"{args.model} has no alias {args.alias} any more")


def _numbers(versions: Iterable[int]) -> str:
    """Lists version numbers."""
    return ", ".join(map(str, versions))
