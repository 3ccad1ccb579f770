"""`measure` reports delays of the event loop and growth of the server under heavy requests.

    python benchmarks/event_loop.py [--seconds 30] [--only prompt,echo,texts,regex,read,lists]

Starts a server of its own on a free port with a temporary data directory, trains a small model for
each tokenizer, and sends the largest requests that the server takes. Meanwhile a process of its own
asks gRPC health every 4 ms. For each scenario it prints the worst and the 99th percentile of these
answers, by how much the server's resident memory rose above what it had before (its peak, as Linux
counts it), how long the call took, and how it ended: `cut off` stands where it was left running for
`--seconds` and then cancelled. The first line is the idle machine. Run it on one that has nothing
else to do: whatever else it does counts, so the load average stands below.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from treadle.benchmarks.channels import THIS_MACHINE
from treadle.v1 import sequence_pb2 as pb
from treadle.v1 import sequence_pb2_grpc

_PAUSE_S = 0.004
_MESSAGE = (4 << 20) - 1024
"""Bytes of the largest text: a message less what else is in it."""

_LETTERS = "abcdefghijklmnopqrstuvwxyz"

Outcome = str
"""How a call ended, in a few words."""


@dataclass(frozen=True)
class Scenario:
    """What is asked of the server while its health is watched."""

    group: str
    """What `--only` names."""
    name: str
    """Its line in the table."""
    ask: Callable[[sequence_pb2_grpc.SequenceServiceStub, float], Outcome]
    """Sends the requests; gets the seconds after which to give up."""


def main() -> None:
    """Runs the measurement and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="the most of each call")
    parser.add_argument("--only", default="", help="groups of scenarios, with commas")
    parser.add_argument("--health", metavar="ADDRESS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.health:
        watch_health(options.health)
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "treadle.server", "--address", "127.0.0.1:0"]
        server = subprocess.Popen(
            [*command, "--data-dir", folder, "--standby-workers", "0"],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert server.stdout is not None
            measure(server.stdout.readline().split()[-1], server.pid, options)
        finally:
            server.terminate()
            server.wait()


def watch_health(address: str) -> None:
    """Asks for health until standard input ends; prints the milliseconds of each answer."""
    times: list[float] = []
    ended = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    with grpc.insecure_channel(address, THIS_MACHINE) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        stub.Check(health_pb2.HealthCheckRequest())
        print("ready", flush=True)
        while not ended.is_set():
            begin = time.perf_counter()
            stub.Check(health_pb2.HealthCheckRequest())
            times.append((time.perf_counter() - begin) * 1e3)
            time.sleep(_PAUSE_S)
    json.dump(times, sys.stdout)


def measure(address: str, server: int, options: argparse.Namespace) -> None:
    """Trains the models, runs the scenarios and prints a line for each."""
    sizes = [("grpc.max_receive_message_length", 64 << 20), *THIS_MACHINE]
    with grpc.insecure_channel(address, options=sizes) as channel:
        stub = sequence_pb2_grpc.SequenceServiceStub(channel)
        for kind in KINDS:
            train(stub, kind)
        selected = {name for name in options.only.split(",") if name}
        head = f"{'worst ms':>9}{'p99 ms':>8}{'grew MB':>9}{'took s':>8}  ended"
        print(f"{'':<44}{head}", flush=True)
        for scenario in scenarios():
            if not selected or scenario.group in selected or scenario.group == "idle":
                run(scenario, stub, address, server, options.seconds)
    print(f"load average {os.getloadavg()[0]:.1f}")


def run(
    scenario: Scenario,
    stub: sequence_pb2_grpc.SequenceServiceStub,
    address: str,
    server: int,
    seconds: float,
) -> None:
    """Runs a scenario and prints its line."""
    command = [sys.executable, __file__, "--health", address]
    watcher = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert watcher.stdout is not None
    watcher.stdout.readline()
    Path(f"/proc/{server}/clear_refs").write_text("5")  # the peak is counted from now on
    before = memory_mb(server, "VmRSS")
    begin = time.perf_counter()
    try:
        outcome = scenario.ask(stub, seconds)
    except grpc.RpcError as error:
        outcome = error.code().name
    took = time.perf_counter() - begin
    time.sleep(0.2)
    grew = memory_mb(server, "VmHWM") - before
    times = sorted(json.loads(watcher.communicate("")[0]))
    p99 = times[int(len(times) * 0.99)]
    figures = f"{times[-1]:>9.1f}{p99:>8.1f}{grew:>9.0f}{took:>8.1f}"
    print(f"{scenario.name:<44}{figures}  {outcome}", flush=True)


def memory_mb(process: int, name: str) -> float:
    """Returns a figure of a process's memory, such as VmRSS, in megabytes."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024 / 1e6


def _words(size: int) -> str:
    draw = random.Random(0)
    words = ["".join(draw.choices(_LETTERS, k=5)) for _ in range(2000)]
    return " ".join(draw.choices(words, k=size // 6))


CORPUS = _words(200_000)
LONG = _words(_MESSAGE)
UNBROKEN = "".join(random.Random(1).choices(_LETTERS, k=_MESSAGE))
KINDS = [
    name.removeprefix("TOKENIZER_KIND_").lower()
    for name in pb.TokenizerKind.keys()  # noqa: SIM118 - no mapping
    if not name.endswith("UNSPECIFIED")
]


def train(stub: sequence_pb2_grpc.SequenceServiceStub, kind: str) -> None:
    """Trains a small model of a tokenizer for a few steps, under the tokenizer's name."""
    spec = pb.TrainSpec(
        model=kind,
        tokenizer=pb.TokenizerSpec(
            kind=pb.TokenizerKind.Value(f"TOKENIZER_KIND_{kind.upper()}"),
            max_vocabulary_size=1000,
            unknown_policy=pb.UNKNOWN_POLICY_SKIP,
        ),
        network=pb.NetworkSpec(hidden_size=64),
        data=pb.DataSpec(batch_size=8, window=16),
        limits=pb.LimitsSpec(max_steps=4),
    )

    def upload() -> Iterator[pb.TrainRequest]:
        data = CORPUS.encode()
        yield pb.TrainRequest(spec=spec)
        yield pb.TrainRequest(corpus_chunk=data)
        yield pb.TrainRequest(corpus_end=pb.CorpusEnd(size_bytes=len(data)))

    if not list(stub.Train(upload()))[-1].HasField("completed"):
        raise SystemExit(f"the model of {kind} could not be trained")


def generate(
    request: pb.GenerateRequest, stub: sequence_pb2_grpc.SequenceServiceStub, seconds: float
) -> Outcome:
    """Reads a generation to its end, or for so many seconds."""
    until = time.perf_counter() + seconds
    replies = 0
    call = stub.Generate(request, timeout=10 * seconds)
    timer = threading.Timer(seconds, call.cancel)
    timer.start()
    try:
        for _ in call:
            replies += 1
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.CANCELLED or time.perf_counter() < until:
            raise
        return f"cut off after {replies} replies"
    finally:
        timer.cancel()
    return f"{replies} replies"


def regexes(stub: sequence_pb2_grpc.SequenceServiceStub, seconds: float) -> Outcome:
    """Sends four hostile expressions and, next to them, a cached one and a new cheap one."""
    model = "characters"
    cached = pb.GenerateRequest(model=model, regex="[a-z]{1,9}", seed=1)
    list(stub.Generate(cached))
    hostile = ["((a|b)*a(a|b){13})", "([a-z]*x[a-z]{11})*", "(.*a.{9}){2}", r"(\w{1,40} ?){2}"]
    calls = [
        stub.Generate(pb.GenerateRequest(model=model, regex=text, seed=1), timeout=10 * seconds)
        for text in hostile
    ]
    ends: list[str] = []

    def follow(call: Iterator[pb.GenerateResponse]) -> None:
        try:
            list(call)
            ends.append("ok")
        except grpc.RpcError as error:
            ends.append(error.code().name)

    threads = [threading.Thread(target=follow, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    waits = []
    for regex in ("[a-z]{1,9}", "[a-z]{2,8}"):
        begin = time.perf_counter()
        list(stub.Generate(pb.GenerateRequest(model=model, regex=regex, seed=1)))
        waits.append(time.perf_counter() - begin)
    for thread in threads:
        thread.join()
    hostile_ends = ", ".join(f"{ends.count(end)} {end}" for end in sorted(set(ends)))
    return f"cached {waits[0]:.2f} s, cheap {waits[1]:.2f} s, hostile: {hostile_ends}"


def read_texts(
    request: pb.EmbedRequest | pb.ScoreRequest,
    stub: sequence_pb2_grpc.SequenceServiceStub,
    seconds: float,
) -> Outcome:
    """Embeds or scores."""
    if isinstance(request, pb.EmbedRequest):
        return f"a reply of {stub.Embed(request, timeout=10 * seconds).ByteSize():,} bytes"
    return f"a reply of {stub.Score(request, timeout=10 * seconds).ByteSize():,} bytes"


def list_jobs(stub: sequence_pb2_grpc.SequenceServiceStub, seconds: float) -> Outcome:
    """Lists jobs in any of four million states."""
    request = pb.ListJobsRequest(states=[pb.JOB_STATE_QUEUED] * (_MESSAGE - 64))
    return f"{len(stub.ListJobs(request, timeout=10 * seconds).jobs)} jobs"


def idle(stub: sequence_pb2_grpc.SequenceServiceStub, seconds: float) -> Outcome:
    """Asks for nothing."""
    time.sleep(3.0)
    return ""


def stream(stub: sequence_pb2_grpc.SequenceServiceStub, seconds: float) -> Outcome:
    """Scores a stream of one piece, the largest there is."""
    messages = [
        pb.ScoreStreamRequest(spec=pb.ScoreStreamSpec(model="subwords")),
        pb.ScoreStreamRequest(piece=pb.TextPiece(text=UNBROKEN, end=True)),
    ]
    return f"{len(list(stub.ScoreStream(iter(messages), timeout=10 * seconds)))} replies"


def scenarios() -> Iterator[Scenario]:
    """Yields every scenario, the idle machine first."""
    yield Scenario("idle", "idle", idle)
    one: dict[str, Any] = {"max_new_tokens": 1}

    def asks(group: str, name: str, **fields: Any) -> Scenario:
        request = pb.GenerateRequest(**fields)
        return Scenario(group, name, partial(generate, request))

    def reads(
        name: str, request: pb.EmbedRequest | pb.ScoreRequest, group: str = "read"
    ) -> Scenario:
        return Scenario(group, name, partial(read_texts, request))

    for kind in KINDS:
        yield asks("prompt", f"prompt of 4 MB, {kind}", model=kind, prompt=LONG, **one)
    for kind in ("words", "subwords", "events"):
        name = f"prompt of 4 MB without a blank, {kind}"
        yield asks("prompt", name, model=kind, prompt=UNBROKEN, **one)
    marks = "a\u0301" * (_MESSAGE // 3)
    yield asks("prompt", "prompt of 4 MB, one word of marks", model="words", prompt=marks, **one)
    detail: dict[str, Any] = {"echo": True, "top_log_probabilities": 20, "ranks": True}
    for kind in ("characters", "bytes", "subwords", "words"):
        name = f"echo of 4 MB with 20 alternatives, {kind}"
        yield asks("echo", name, model=kind, prompt=LONG, **one, **detail)
    yield asks(
        "echo",
        "the same for 256 texts, characters",
        model="characters",
        prompt=LONG,
        n=256,
        **one,
        **detail,
    )
    for kind in ("characters", "subwords"):
        yield asks(
            "texts",
            f"256 texts with 20 alternatives, {kind}",
            model=kind,
            n=256,
            max_new_tokens=1000,
            top_log_probabilities=20,
            ranks=True,
        )
    yield Scenario("regex", "four hostile expressions", regexes)
    for kind in ("characters", "subwords"):
        yield reads(f"embed 4 MB, {kind}", pb.EmbedRequest(model=kind, texts=[LONG]))
        yield reads(f"score 4 MB, {kind}", pb.ScoreRequest(model=kind, texts=[LONG]))
    detailed = pb.ScoreRequest(
        model="characters", texts=[LONG[:9000]], ranks=True, top_log_probabilities=20
    )
    yield reads("score with the largest reply", detailed)
    pieces = [LONG[start : start + 400] for start in range(0, 4_000_000, 400)]
    yield reads("score 10,000 texts", pb.ScoreRequest(model="characters", texts=pieces))
    yield Scenario("read", "a stream of one piece of 4 MB, subwords", stream)
    empty = pb.ScoreRequest(model="characters", texts=[""] * (_MESSAGE // 2))
    yield reads("2 million empty texts to score", empty, "lists")
    token = pb.TokenReference(id=1)
    yield asks(
        "lists",
        "700,000 banned tokens",
        model="characters",
        banned_tokens=[token] * (_MESSAGE // 6),
        **one,
    )
    yield asks(
        "lists",
        "1.3 million empty token biases",
        model="characters",
        token_biases=[pb.TokenBias()] * (_MESSAGE // 3),
        **one,
    )
    yield Scenario("lists", "4 million states of jobs", list_jobs)
    yield asks(
        "lists",
        "1.4 million stop sequences",
        model="characters",
        stop_sequences=["a"] * (_MESSAGE // 3),
        **one,
    )
    text = pb.TokenReference(text=UNBROKEN)
    yield asks("lists", "a banned token of 4 MB", model="subwords", banned_tokens=[text], **one)
    yield asks(
        "lists",
        "forced tokens of 4 MB, 256 texts",
        model="characters",
        forced_tokens=[text],
        n=256,
        max_new_tokens=100,
    )


if __name__ == "__main__":
    main()
