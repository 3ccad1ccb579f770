"""`measure` reports the speed of a large upload, and the memory of the processes that read it.

    python benchmarks/large_corpus.py text.txt [--megabytes 200] [--layout lines]
        [--tokenizer bytes]

Repeats a text to so many megabytes, each copy under a line of its own number, sends it to a
server of its own over loopback, lets the job make a few steps, and prints the megabytes a second
from the first chunk to the job in the queue, the seconds until training began, and the largest
resident memory of the server and of the training process, as parts of the corpus' size.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc

from treadle.benchmarks.channels import THIS_MACHINE
from treadle.benchmarks.script import input_file
from treadle.v1 import sequence_pb2 as pb
from treadle.v1 import sequence_pb2_grpc

_CHUNK = 1 << 20
_MEGABYTE = 1_000_000


def chunks(text: bytes, size: int) -> Iterator[bytes]:
    """Yields `size` bytes of copies of a text, each with a number before it."""
    whole = 0
    number = 0
    buffer = bytearray()
    while whole < size:
        while len(buffer) < _CHUNK:
            buffer += b"\ncopy %d\n" % number + text
            number += 1
        chunk = bytes(buffer[: min(_CHUNK, size - whole)])
        del buffer[:_CHUNK]
        whole += len(chunk)
        yield chunk


def upload(data: list[bytes], options: argparse.Namespace) -> Iterator[pb.TrainRequest]:
    """Yields the messages of the upload."""
    layout = pb.CorpusLayout.Value(f"CORPUS_LAYOUT_{options.layout.upper()}")
    kind = pb.TokenizerKind.Value(f"TOKENIZER_KIND_{options.tokenizer.upper()}")
    spec = pb.TrainSpec(
        model="large",
        tokenizer=pb.TokenizerSpec(kind=kind),
        data=pb.DataSpec(layout=layout),
        limits=pb.LimitsSpec(max_steps=200),
        report=pb.ReportSpec(validation_interval_steps=10**9),
    )
    yield pb.TrainRequest(spec=spec)
    for chunk in data:
        yield pb.TrainRequest(corpus_chunk=chunk)
    yield pb.TrainRequest(corpus_end=pb.CorpusEnd(size_bytes=sum(map(len, data))))


def peak(pid: int) -> int:
    """Returns the largest resident memory that a process has had, in bytes; 0 if it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


def children(pid: int) -> list[int]:
    """Returns the ids of a process' children."""
    tasks = Path(f"/proc/{pid}/task")
    found = ((task / "children").read_text().split() for task in tasks.iterdir())
    return [int(child) for part in found for child in part]


def measure(server: subprocess.Popen[str], options: argparse.Namespace) -> None:
    """Sends the corpus and prints the figures."""
    assert server.stdout is not None
    data = list(chunks(options.text.read_bytes(), int(options.megabytes * _MEGABYTE)))
    size = sum(map(len, data))
    address = server.stdout.readline().split()[-1]
    with grpc.insecure_channel(address, THIS_MACHINE) as channel:
        stub = sequence_pb2_grpc.SequenceServiceStub(channel)
        began = time.perf_counter()
        events = stub.Train(upload(data, options))
        next(events)
        sent = time.perf_counter() - began
        print(f"upload: {size / _MEGABYTE / sent:.0f} MB/s ({size:,} bytes in {sent:.1f} s)")
        largest = 0
        for event in events:
            largest = max([largest, *map(peak, children(server.pid))])
            if event.HasField("started"):
                print(f"training began {time.perf_counter() - began - sent:.1f} s later")
        print(f"training process: {largest / size:.2f} times the corpus ({largest:,} bytes)")
        own = peak(server.pid)
        print(f"server: {own / size:.2f} times the corpus ({own:,} bytes)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the measurement."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("text", type=input_file)
    parser.add_argument("--megabytes", type=float, default=200.0)
    parser.add_argument("--layout", choices=("text", "lines"), default="text")
    parser.add_argument("--tokenizer", default="characters")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "treadle.server", "--address", "127.0.0.1:0"]
        command += ["--data-dir", folder, "--standby-workers", "0", "--log-level", "warning"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            measure(server, options)
        finally:
            server.terminate()
            server.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
