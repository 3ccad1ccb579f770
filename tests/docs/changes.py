"""All that the tests change in the documented blocks before they run them, and why.

A block that no entry names runs as it stands. An entry that matches nothing fails the test.
"""

from __future__ import annotations

from dataclasses import dataclass

ADDRESS = "127.0.0.1:50051"
"""Where the pages say that the server listens; the tests put the address of their own."""

HTTP_ADDRESS = "127.0.0.1:8080"
"""The same for HTTP."""


@dataclass(frozen=True)
class Edit:
    """A text in the blocks of a page that is another one while the tests run."""

    page: str
    old: str
    new: str
    why: str


@dataclass(frozen=True)
class NotRun:
    """A block that the tests do not run, found by a text in it."""

    page: str
    text: str
    why: str
    """The reason, and the test that runs the same elsewhere."""


@dataclass(frozen=True)
class Endless:
    """A block that runs until Ctrl-C, found by a text in it."""

    page: str
    text: str
    until: str
    """A regular expression of what is printed before the reader presses Ctrl-C."""
    then: str
    """A regular expression of what is printed after that."""


_SHORTER = "a test must not train for so long"
_INSTALLED = "the tests run in an environment where Treadle is installed"
_ELSEWHERE = "the tests write into a directory of their own"

EDITS = [
    Edit("README.md", "make demo", "TRAIN_FOR=0.3s examples/demo.sh", f"{_INSTALLED}; {_SHORTER}"),
    Edit("README.md", "python3 -m venv .venv && . .venv/bin/activate\n", "", _INSTALLED),
    Edit("README.md", "pip install '.[server]'\n", "", _INSTALLED),
    Edit("README.md", "pip install '.[server,http]'\n", "", _INSTALLED),
    Edit(
        "README.md",
        "treadle run my.txt",
        "printf 'a text of my own. %.0s' {1..50} > my.txt\ntreadle run my.txt --train-for 0.3s",
        f"a text of the test's; {_SHORTER}",
    ),
    Edit("README.md", "--train-for 20s", "--train-for 0.3s", _SHORTER),
    Edit("README.md", "--train-for 3m", "--train-for 1s", _SHORTER),
    Edit(
        "README.md",
        "--hidden-size 256 --max-epochs 8",
        "--max-steps 20 --validation-interval 20",
        _SHORTER,
    ),
    Edit("README.md", "tail -c 111540", "tail -c 11154", "scoring it all takes seconds"),
    Edit("README.md", "max_time_s=20", "max_time_s=0.3", _SHORTER),
    Edit("README.md", "max_time_s=10", "max_time_s=0.3", _SHORTER),
    Edit("docs/client.md", "--train-for 20s", "--train-for 0.3s", _SHORTER),
    Edit("docs/client.md", "--train-for 180s", "--train-for 1s", _SHORTER),
    Edit("docs/client.md", "--max-epochs 5", "--max-steps 50", _SHORTER),
    Edit("docs/client.md", "--max-epochs 2", "--max-steps 20", _SHORTER),
    Edit("docs/client.md", "--max-epochs 1\n", "--max-steps 20\n", _SHORTER),
    Edit("docs/operations.md", "pip install '.[server]'\n", "", _INSTALLED),
    Edit("docs/sweep.md", "trials = 12", "trials = 2", _SHORTER),
    Edit("docs/sweep.md", "max_steps = 300", "max_steps = 10", _SHORTER),
    Edit("docs/openai.md", "pip install openai\n", "", _INSTALLED),
    Edit("docs/operations.md", "/run/treadle/socket", "$PWD/socket", _ELSEWHERE),
    Edit("docs/operations.md", "/data", "treadle-data", _ELSEWHERE),
    Edit("docs/operations.md", "/backup", "backup", _ELSEWHERE),
    Edit("docs/page.md", "127.0.0.1:8080", "127.0.0.1:0", "another program may use the port"),
    Edit(
        "docs/scale.md",
        "python benchmarks/scale_model.py",
        "python benchmarks/scale_model.py --no-simulation",
        "takes half a minute: tests/benchmarks/test_scale_model.py",
    ),
    Edit("docs/security.md", "--max-steps 20", "--max-steps 5", _SHORTER),
    Edit(
        "docs/pytorch.md",
        "from safetensors.torch import save_file\n\nsave_file(model.state_dict(), ",
        "from safetensors.numpy import load_file, save_file\nfrom treadle.model import train\n\n"
        "train('hello', max_steps=50).save('hello.safetensors')\n"
        "save_file(load_file('hello.safetensors'), ",
        "PyTorch is not installed; a file of Treadle's own has the same names",
    ),
]

NOT_RUN = [
    NotRun("CONTRIBUTING.md", "make venv", _INSTALLED),
    NotRun("CONTRIBUTING.md", "make test", "the tests themselves"),
    NotRun("README.md", "docker build", "needs a container engine: tests/image/run.sh"),
    NotRun("README.md", "--tls-cert-file", "listens on every network: docs/security.md runs it"),
    NotRun("README.md", "--database-url", "needs PostgreSQL: tests/server/test_replica_clients.py"),
    NotRun("README.md", "mpirun -n 4", "needs machines: tests/exactness/test_ranks.py"),
    NotRun("README.md", "treadle sweep names.toml", "docs/sweep.md runs it"),
    NotRun("README.md", "make test", "the tests themselves"),
    NotRun("README.md", "make bench", "takes ten minutes: tests/benchmarks/test_bench.py"),
    NotRun("benchmarks/README.md", "make bench", "as in README.md"),
    NotRun(
        "benchmarks/README.md", "event_loop.py", "takes minutes; fails where a pause is too long"
    ),
    NotRun(
        "benchmarks/README.md",
        "abuse.py --ordinary",
        "takes a quarter of an hour: tests/benchmarks/test_abuse.py",
    ),
    NotRun("benchmarks/README.md", "abuse.py --server-command", "needs another version"),
    NotRun("benchmarks/README.md", "pip install torch", "needs a network"),
    NotRun("benchmarks/README.md", "--earlier", "needs another version"),
    NotRun(
        "docs/anomalies.md",
        "hdfs.py",
        "needs data that may not be shipped: tests/benchmarks/test_hdfs_sessions.py",
    ),
    NotRun(
        "docs/int8.md",
        "int8_loss.py",
        "trains for minutes: tests/benchmarks/test_int8_loss.py",
    ),
    NotRun(
        "docs/exactness.md",
        "NUMBA_CPU_NAME=haswell",
        "compiles every kernel for another processor: tests/exactness/test_processors.py",
    ),
    NotRun(
        "docs/observability.md",
        "curl --silent --retry 9",
        "takes a port of this machine: tests/server/test_metrics.py",
    ),
    NotRun(
        "docs/observability.md",
        "--otlp-endpoint",
        "needs a collector: tests/server/test_tracing.py",
    ),
    NotRun("docs/operations.md", "docker build", "as in README.md"),
    NotRun("docs/operations.md", "docker run --rm", "as in README.md"),
    NotRun("docs/operations.md", "docker run --read-only", "as in README.md"),
    NotRun("docs/security.md", "docker run --rm", "as in README.md: tests/image/run.sh"),
    NotRun("docs/security.md", "sudo chown", "as in README.md: tests/test_deploy.py"),
    NotRun(
        "docs/security.md", "kubectl create secret tls", "needs a cluster: tests/test_deploy.py"
    ),
    NotRun("docs/security.md", "--dry-run=client", "needs a cluster"),
    NotRun(
        "docs/scale.md",
        "compose.replicas.yaml up",
        "needs a container engine, and images: tests/test_deploy.py",
    ),
    NotRun("docs/scale.md", "--database-url", "needs PostgreSQL: tests/server/test_postgresql.py"),
    NotRun("docs/scale.md", "createuser", "needs PostgreSQL: tests/server/test_postgresql.py"),
    NotRun("docs/operations.md", "pg_dump", "needs PostgreSQL: tests/server/test_postgresql.py"),
    NotRun(
        "docs/scale.md",
        "--server one.example:50051,two",
        "needs such servers: tests/client/test_replicas.py",
    ),
    NotRun("docs/scale.md", "treadle-database", "needs a cluster: tests/test_deploy.py"),
    NotRun("docs/scale.md", "--build-arg LOCK=ray.lock", "needs a cluster: tests/test_deploy.py"),
    NotRun(
        "docs/scale.md",
        "ray start --head --port",
        "needs machines: tests/server/test_ray_cluster.py",
    ),
    NotRun(
        "docs/scale.md", "ray start --address", "needs machines: tests/server/test_ray_cluster.py"
    ),
    NotRun(
        "docs/scale.md",
        "--executor ray --training-slots",
        "needs machines: tests/server/test_ray_cluster.py",
    ),
    NotRun("docs/pytorch.md", "class SequenceModel", "needs PyTorch: tests/golden"),
    NotRun("docs/pytorch.md", "def load(path)", "needs PyTorch: tests/golden"),
    NotRun("docs/pytorch.md", "class FactoredModel", "needs PyTorch: tests/golden"),
    NotRun("docs/pytorch.md", "model = load(", "needs PyTorch: tests/golden"),
    NotRun(
        "docs/client.md",
        "--token-file prod.token info",
        "needs such a server: tests/client/test_end_to_end_access.py",
    ),
    NotRun(
        "docs/client.md",
        'token=TokenFile("prod.token")',
        "needs such a server: tests/client/test_end_to_end_access.py",
    ),
    NotRun("docs/client.md", "grpcurl -cacert", "needs such a server, and grpcurl"),
    NotRun("docs/client.md", "npm ci", "needs a network: tests/client/test_node_example.py"),
    NotRun(
        "docs/other-languages.md",
        "make example-go",
        "tests/client/test_compiled_examples.py and test_browser_example.py",
    ),
    NotRun("docs/other-languages.md", "go mod tidy", "needs a network"),
    NotRun("docs/other-languages.md", "gradle run", "needs a network, and Gradle"),
    NotRun(
        "docs/other-languages.md",
        "python -m http.server",
        "needs a network: tests/client/test_browser_example.py",
    ),
]

ENDLESS = [
    Endless(
        "README.md",
        "tail -n +1 -f",
        until="logout flush unlock close",
        then="published sessions version 2",
    ),
    Endless("docs/client.md", "tail -n +1 -f", until=r"(?m)^\s*\d+\.\d", then=""),
]

PROGRAMS = ("jq", "sqlite3")
"""Programs that Treadle does not bring: a block that needs one is left out where it is missing."""
