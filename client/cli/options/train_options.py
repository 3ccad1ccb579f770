"""`add_train_options` adds the files and options of `treadle train`, by groups of its help."""

from __future__ import annotations

import argparse

from treadle.client.cli.options.option import add_option
from treadle.client.cli.options.shared import add_follow, add_json, add_unknown
from treadle.client.cli.options.values import duration, size, weight


def add_train_options(parser: argparse.ArgumentParser) -> None:
    """Adds the files of the corpus and every option of `treadle train`."""
    _add_files(parser)
    parser.add_argument(
        "--model",
        metavar="NAME",
        required=True,
        help="the model's name; a name in use gets a new version (1 to 100 letters, digits, `.`, "
        "`_` and `-`)",
    )
    parser.add_argument(
        "--detach",
        action="store_true",
        help="leave once the server has accepted the job, and print the job's id "
        "(with --json: the first event)",
    )
    add_option(
        parser,
        "--request-id",
        "makes the command safe to repeat: with the same TEXT it follows the same job",
        values="up to 100 ASCII characters",
        default="none",
        metavar="TEXT",
    )
    add_json(parser)
    add_follow(parser)
    _add_recipe(parser.add_argument_group("recipe"))
    _add_text(parser.add_argument_group("text"))
    _add_data(parser.add_argument_group("data"))
    _add_network(parser.add_argument_group("network"))
    _add_learning(parser.add_argument_group("learning"))
    _add_limits(
        parser.add_argument_group("end (at the first limit; without one the server sets the steps)")
    )
    _add_reports(parser.add_argument_group("reports"))


def _add_files(parser: argparse.ArgumentParser) -> None:
    """Adds the files of the corpus."""
    parser.add_argument(
        "file", metavar="FILE", nargs="+", help="the corpus; - reads standard input"
    )
    for role, use in (("valid", "validate on"), ("test", "test the stored model on")):
        parser.add_argument(
            f"--{role}",
            metavar="FILE",
            action="append",
            default=[],
            help=f"a separate file to {use}; may be repeated (default: a share of the corpus)",
        )
    parser.add_argument(
        "--weight",
        metavar="FILE=W",
        dest="weights",
        action="append",
        type=weight,
        default=[],
        help="how often an epoch reads FILE; may be repeated (above 0 to 100; default: 1)",
    )


def _add_recipe(group: argparse._ArgumentGroup) -> None:
    """Adds settings that are chosen as a whole."""
    add_option(
        group,
        "--auto",
        "the server chooses every setting that is not given, and reports why; same as --preset "
        "auto",
        dest="preset",
        action="store_const",
        const="auto",
    )
    add_option(group, "--preset", "settings chosen as a whole", default="none", choices=("auto",))


def _add_text(group: argparse._ArgumentGroup) -> None:
    """Adds how text becomes tokens."""
    add_option(
        group,
        "--tokenizer",
        "the kind of token; whitespace: the text between white space, and line ends",
        default="characters",
        choices=("characters", "bytes", "words", "subwords", "events", "whitespace"),
    )
    add_option(
        group,
        "--max-vocabulary-size",
        "not with characters or bytes: keep the N most frequent tokens",
        values="1 to 1,000,000",
        default="10,000",
        type=int,
        metavar="N",
    )
    add_option(
        group,
        "--min-frequency",
        "tokens that occur less often are unknown",
        values="1 or more",
        default="1",
        type=int,
        metavar="N",
    )
    add_option(group, "--lower-case", "read text in lower case", action="store_true")
    add_unknown(group, "error; for words, events and whitespace: unknown")


def _add_data(group: argparse._ArgumentGroup) -> None:
    """Adds how the corpus is read and split."""
    add_option(
        group,
        "--layout",
        "one long text, or one item per line",
        default="text",
        choices=("text", "lines"),
    )
    add_option(
        group,
        "--format",
        "the format of the files",
        default="by their names: jsonl for .jsonl and .ndjson, csv for .csv and .tsv, else plain",
        choices=("plain", "jsonl", "csv"),
    )
    add_option(
        group,
        "--column",
        "jsonl, csv: the field that holds the items",
        values="up to 256 characters",
        default="text",
        metavar="NAME",
    )
    add_option(
        group,
        "--encoding",
        "the encoding of the files, such as latin-1",
        values="up to 40 characters",
        default="utf-8",
        metavar="NAME",
    )
    add_option(
        group,
        "--missing",
        "jsonl, csv: how to treat rows without text, such as null",
        default="error",
        choices=("error", "skip"),
    )
    add_option(
        group,
        "--novelty-index",
        "store the training part with the model, so that `generate --novel` can compare with it",
        action="store_true",
    )
    add_option(
        group,
        "--validation-fraction",
        "share of the corpus for validation",
        values="0 to below 1",
        default="0.1",
        type=float,
        metavar="F",
    )
    add_option(
        group,
        "--test-fraction",
        "share of the corpus for a test at the end",
        values="0 to below 1",
        default="0",
        type=float,
        metavar="F",
    )


def _add_network(group: argparse._ArgumentGroup) -> None:
    """Adds the shape of the network, or the model that it begins as."""
    add_option(
        group,
        "--cell",
        "the recurrent cell",
        default="lstm",
        choices=("rnn", "gru", "lstm"),
    )
    add_option(
        group,
        "--hidden-size",
        "units in each layer",
        values="1 to 4,096",
        default="128",
        type=int,
        metavar="N",
    )
    add_option(
        group,
        "--layers",
        "recurrent layers",
        values="1 to 8",
        default="1",
        type=int,
        metavar="N",
    )
    add_option(
        group,
        "--embedding-size",
        "length of a token's embedding, 0 for one-hot",
        values="0 to 4,096",
        default="64",
        type=int,
        metavar="N",
    )
    add_option(
        group,
        "--dropout",
        "share of units dropped between layers",
        values="0 to below 1",
        default="0",
        type=float,
        metavar="F",
    )
    add_option(
        group,
        "--output-dropout",
        "share of units dropped before the output layer",
        values="0 to below 1",
        default="0",
        type=float,
        metavar="F",
    )
    add_option(
        group,
        "--tied-weights",
        "the output layer shares the weights of the embedding; needs equal sizes",
        action="store_true",
    )
    add_option(
        group,
        "--init-from",
        "begin with the weights of MODEL or MODEL@ALIAS",
        default="random weights",
        metavar="MODEL",
    )
    add_option(
        group,
        "--init-from-version",
        "the version of --init-from",
        values="1 or more",
        default="the newest",
        type=int,
        metavar="N",
    )


def _add_learning(group: argparse._ArgumentGroup) -> None:
    """Adds how the weights learn."""
    add_option(
        group,
        "--batch-size",
        "sequences trained at once",
        values="1 to 4,096",
        default="32",
        type=int,
        metavar="N",
    )
    add_option(
        group,
        "--window",
        "steps of backpropagation through time",
        values="1 to 4,096",
        default="64",
        type=int,
        metavar="N",
    )
    add_option(
        group,
        "--optimizer",
        "the update rule",
        default="adam",
        choices=("sgd", "adagrad", "adam"),
    )
    add_option(
        group,
        "--learning-rate",
        "the highest learning rate",
        values="above 0",
        default="adam 0.003, adagrad 0.1, sgd 0.5",
        type=float,
        metavar="F",
    )
    add_option(
        group,
        "--schedule",
        "how the learning rate changes over the run",
        default="cosine",
        choices=("constant", "cosine", "plateau"),
    )
    add_option(
        group,
        "--plateau-factor",
        "plateau: factor of the learning rate after --plateau-patience",
        values="above 0 to below 1",
        default="0.5",
        type=float,
        metavar="F",
    )
    add_option(
        group,
        "--plateau-patience",
        "plateau: validations without a better loss before the rate falls",
        values="1 or more",
        default="2",
        type=int,
        metavar="N",
    )
    add_option(
        group,
        "--warmup-steps",
        "steps in which the learning rate rises from 0",
        values="0 or more",
        default="100, or a tenth of a shorter run",
        type=int,
        metavar="N",
    )
    add_option(
        group,
        "--beta1",
        "adam: decay of the mean of gradients",
        values="0 to below 1",
        default="0.9",
        type=float,
        metavar="F",
    )
    add_option(
        group,
        "--beta2",
        "adam: decay of the mean of squared gradients",
        values="0 to below 1",
        default="0.99",
        type=float,
        metavar="F",
    )
    add_option(
        group,
        "--weight-decay",
        "weight decay, decoupled from the gradient except with adagrad",
        values="0 or more",
        default="0",
        type=float,
        metavar="F",
    )
    add_option(
        group,
        "--clip-norm",
        "scale larger gradients down to this norm, 0 never",
        values="0 or more",
        default="1",
        type=float,
        metavar="F",
    )
    add_option(
        group,
        "--clip-value",
        "clip each element of the gradient to -F and F, 0 never",
        values="0 or more",
        default="0",
        type=float,
        metavar="F",
    )
    add_option(
        group,
        "--precision",
        "numbers that the matrix products multiply; bf16 is faster where the server has "
        "AVX512_BF16",
        default="fp32",
        choices=("fp32", "bf16"),
    )
    add_option(
        group,
        "--accumulation-steps",
        "batches whose gradients are added up for one step",
        values="1 to 4,096",
        default="1",
        type=int,
        metavar="N",
    )
    add_option(
        group,
        "--seed",
        "seed of everything random",
        values="0 or more",
        default="0",
        type=int,
        metavar="N",
    )


def _add_limits(group: argparse._ArgumentGroup) -> None:
    """Adds when the run ends, and which weights it stores."""
    add_option(
        group,
        "--max-steps",
        "optimizer steps",
        values="1 or more",
        default="no limit",
        type=int,
        metavar="N",
    )
    add_option(
        group,
        "--max-epochs",
        "passes over the training part",
        values="above 0",
        default="no limit",
        type=float,
        metavar="F",
    )
    add_option(
        group,
        "--train-for",
        "time of the run with its validations, such as 90s, 3m or 1h",
        values="above 0",
        default="no limit",
        dest="max_time_s",
        type=duration,
        metavar="TIME",
    )
    add_option(
        group,
        "--max-wall-time",
        "time by the clock without waiting and pauses",
        values="above 0",
        default="no limit",
        dest="max_wall_time_s",
        type=duration,
        metavar="TIME",
    )
    add_option(
        group,
        "--max-tokens",
        "tokens trained on, repeats counted",
        values="1 or more",
        default="no limit",
        type=int,
        metavar="N",
    )
    add_option(
        group,
        "--early-stopping-patience",
        "end after N validations without a better loss, 0 never",
        values="0 or more",
        default="0",
        type=int,
        metavar="N",
    )
    add_option(
        group,
        "--max-memory",
        "fail where the job takes more memory, such as 500MB or 2GB",
        values="1 or more",
        default="the server's limit",
        dest="max_memory_bytes",
        type=size,
        metavar="SIZE",
    )
    add_option(
        group,
        "--keep",
        "the weights that are stored",
        default="best",
        choices=("best", "last"),
    )


def _add_reports(group: argparse._ArgumentGroup) -> None:
    """Adds how often the run reports."""
    add_option(
        group,
        "--progress-interval",
        "time between progress events in seconds, or such as 500ms",
        values="0.05 or more",
        default="1",
        dest="progress_interval_s",
        type=duration,
        metavar="TIME",
    )
    add_option(
        group,
        "--validation-interval",
        "steps between validations",
        values="1 or more",
        default="a tenth of the run",
        dest="validation_interval_steps",
        type=int,
        metavar="N",
    )
    add_option(
        group,
        "--sample-tokens",
        "length of the sample after a validation, 0 for none",
        values="0 to 1,000",
        default="80",
        type=int,
        metavar="N",
    )
