"""`/metrics` of a real server: who may read it, in which form, and that work moves every metric."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import re
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import promql_parser
import pytest
import yaml  # type: ignore[import-untyped]
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.samples import Sample

from treadle.server.access.audit.audit_log import AuditLog
from treadle.server.access.authenticator import OpenAuthenticator
from treadle.server.access.call_origin import CallOrigin
from treadle.server.access.callers.access_token import new_access_token
from treadle.server.config import ServerConfig
from treadle.server.http.metrics_page import MetricsPage
from treadle.server.telemetry.metrics import REGISTRY
from treadle.server.telemetry.server_state import READINGS, ServerState
from treadle.server.telemetry.training_metrics import TrainingMetrics
from treadle.v1 import sequence_pb2 as pb

from .harness import (
    PATIENCE_S,
    TEXT,
    Caller,
    Server,
    first_progress,
    long_spec,
    tiny_spec,
    wait_for,
)

Start = Callable[..., Server]
Values = dict[tuple[str, tuple[tuple[str, str], ...]], float]

OF_REPLICAS = {"treadle_storage_up": {"kind": {"database", "blobs"}}}
"""Labels of metrics of servers that share their storage, and of no other."""

STILL = {
    # test_only_admins_read_where_callers_need_a_token moves it.
    "treadle_quota_refusals_total",
    # Servers that share a database move them; see test_replicas.
    "treadle_leases_acquired_total",
    "treadle_leases_held",
    "treadle_leases_lost_total",
    "treadle_storage_up",
    # What the server and the machine are.
    "treadle_build_info",
    "treadle_memory_budget_limit_bytes",
    "treadle_ready",
    "treadle_warmup_seconds",
}


DEPLOY = Path(__file__).parents[2] / "deploy"

SCRAPE_LABELS = {"job", "instance"}
"""Labels that Prometheus adds to each series."""


def get(url: str, **headers: str) -> tuple[int, str, str]:
    """Returns the status, the content type and the text of a page."""
    asked = urllib.request.Request(url, headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(asked, timeout=PATIENCE_S) as reply:
            return reply.status, reply.headers["content-type"], reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["content-type"], error.read().decode()


def values(text: str) -> Values:
    """Returns every sample of a scrape."""
    samples = [sample for family in parse_text(text) for sample in family.samples]
    return {_key(sample): sample.value for sample in samples}


def _key(sample: Sample) -> tuple[str, tuple[tuple[str, str], ...]]:
    return sample.name, tuple(sorted(sample.labels.items()))


def ours() -> set[str]:
    """Returns the names of the metrics that this package defines."""
    names = {reading.name for reading in READINGS}
    for family in REGISTRY.collect():
        if family.name.startswith(("grpc_", "treadle_")):
            names.add(family.name + ("_total" if family.type == "counter" else ""))
    return names


def queries() -> Iterator[tuple[str, str]]:
    """Yields every query of the dashboard and of the alerts, and where it stands."""
    dashboard = json.loads((DEPLOY / "grafana.json").read_text("utf-8"))
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"].replace("$__rate_interval", "5m")
    for group in yaml.safe_load((DEPLOY / "alerts.yaml").read_text("utf-8"))["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


def nodes(query: str) -> Iterator[Any]:
    """Yields every part of a query, which is parsed as Prometheus would."""
    waiting = [promql_parser.parse(query)]
    while waiting:
        node = waiting.pop()
        yield node
        names = ("expr", "lhs", "rhs", "vector_selector")
        waiting += [getattr(node, name) for name in names if hasattr(node, name)]
        waiting += getattr(node, "args", ())


def selectors(query: str) -> list[Any]:
    """Returns the selectors of a query."""
    return [node for node in nodes(query) if isinstance(node, promql_parser.VectorSelector)]


def groupings(query: str) -> set[str]:
    """Returns the labels by which a query adds up or joins."""
    modifiers = [getattr(node, "modifier", None) for node in nodes(query)]
    return {label for each in modifiers for label in getattr(each, "labels", None) or ()}


def fits(matcher: Any, value: str) -> bool:
    """Returns whether a matcher of a query, which is not a negative one, fits a value."""
    if str(matcher.op) in ("MatchOp.NotEqual", "MatchOp.NotRe"):
        return bool(value != matcher.value)
    return re.fullmatch(matcher.value, value) is not None


def has_weights(caller: Caller, job: str) -> bool:
    """Returns whether a running job has published weights: its first progress may come before."""
    try:
        caller.score("", ["the quick"], job=job)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
            raise
        return False
    return True


class Worked:
    """A server that does something of everything, with the metrics that have moved by then.

    Args:
        folder: Where it keeps its files.
    """

    def __init__(self, folder: Path) -> None:
        self.server = Server(
            folder / "data",
            *("--threads", "1", "--training-slots", "1", "--checkpoint-interval-s", "0.2"),
            *("--memory-budget", str(64 << 20), "--model-cache-bytes", "0"),
            *("--http-address", "127.0.0.1:0"),
        )
        self.url = self.server.http_url + "/metrics"
        self._over = threading.Event()
        self._before = values(get(self.url)[2])
        self.all: Values = {}
        """The last value of every sample that any scrape had."""
        self.moved: set[str] = set()
        """The names of the metrics that have moved."""

    def work(self) -> None:
        """Does something of everything, until every metric has moved."""
        caller = self.server.caller
        spec = tiny_spec("m", max_steps=40)
        spec.report.validation_interval_steps = 10
        caller.trained(spec)
        running = caller.train(long_spec("long"), TEXT)
        job = next(running).job
        waiting = caller.train(tiny_spec("waits"), TEXT)
        next(waiting)
        first_progress(running)
        wait_for(lambda: has_weights(caller, job))
        caller.score("m", ["the quick"])
        caller.score("", ["the quick"], job=job)  # its weights take the place of the model
        caller.stub.Embed(pb.EmbedRequest(model="m", texts=["the"]), timeout=PATIENCE_S)
        with pytest.raises(grpc.RpcError):
            caller.score("m", ["a" * 3_800_000])  # more than the memory budget holds
        request = pb.GenerateRequest(model="m", prompt="the", max_new_tokens=100_000, n=16)
        texts = caller.stub.Generate(request, timeout=PATIENCE_S)
        request = pb.GenerateRequest(job=job, prompt="the", max_new_tokens=100_000, n=16)
        others = caller.stub.Generate(request, timeout=PATIENCE_S)
        scores = caller.stub.ScoreStream(self._pieces(), timeout=PATIENCE_S)
        learning = caller.stub.LearnStream(self._lessons(), timeout=PATIENCE_S)
        for stream in (texts, others, scores, learning):
            next(stream)
        for pid in self.server.workers():
            os.kill(pid, signal.SIGKILL)
        self._scrape_until_all_moved()
        self._over.set()
        for call in (texts, others, scores, learning):
            call.cancel()

    def _scrape_until_all_moved(self) -> None:
        end_s = time.monotonic() + PATIENCE_S / 2
        while not (ours() - STILL <= self.moved) and time.monotonic() < end_s:
            time.sleep(0.2)
            now = values(get(self.url)[2])
            self.all |= now
            for (name, labels), value in now.items():
                if value != self._before.get((name, labels), 0.0):
                    self.moved.add(re.sub("_(bucket|sum|count)$", "", name))

    def _pieces(self) -> Iterator[pb.ScoreStreamRequest]:
        yield pb.ScoreStreamRequest(spec=pb.ScoreStreamSpec(model="m"))
        yield pb.ScoreStreamRequest(piece=pb.TextPiece(text="the quick"))
        self._over.wait(PATIENCE_S)

    def _lessons(self) -> Iterator[pb.LearnStreamRequest]:
        yield pb.LearnStreamRequest(spec=pb.LearnStreamSpec(model="m"))
        yield pb.LearnStreamRequest(learn=pb.TextPiece(text="the quick"))
        self._over.wait(PATIENCE_S)


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worked]:
    worked = Worked(tmp_path_factory.mktemp("worked"))
    try:
        worked.work()
        yield worked
    finally:
        worked.server.close()


def test_work_moves_every_metric(worked: Worked) -> None:
    assert ours() - STILL - worked.moved == set()


def test_names_have_units_and_texts() -> None:
    for family in REGISTRY.collect():
        if family.name.startswith("treadle_"):
            assert family.documentation.endswith("."), family.name
            if family.type == "histogram" and "sequences" not in family.name:
                assert family.name.endswith("_seconds"), family.name
    assert all(reading.text.endswith(".") for reading in READINGS)


def test_labels_are_few_and_hold_no_names_of_models(worked: Worked) -> None:
    labels: dict[str, set[str]] = {}
    for _, pairs in worked.all:
        for name, value in pairs:
            labels.setdefault(name, set()).add(value)
    assert labels.keys() <= {
        *("grpc_type", "grpc_service", "grpc_method", "grpc_code", "le", "state", "kind"),
        *("split", "result", "quota", "version", "job_id", "generation", "implementation"),
        *("major", "minor", "patchlevel"),
    }
    assert len(labels["job_id"]) <= 3
    assert not {"m", "long", "waits"} & set().union(*labels.values())


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", "text/plain"),
        ("text/plain", "text/plain"),
        ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text"),
        (
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;q=0.3",
            "application/openmetrics-text",
        ),
        ("text/html, */*", "text/plain"),
    ],
)
def test_the_format_is_what_the_reader_takes(worked: Worked, accept: str, kind: str) -> None:
    status, content_type, text = get(worked.url, Accept=accept)
    assert status == 200
    assert content_type.startswith(kind)
    parse = parse_openmetrics if kind.startswith("application") else parse_text
    names = {family.name for family in parse(text)}
    assert {"grpc_server_started", "treadle_decode_tokens", "treadle_jobs"} <= names


@pytest.mark.parametrize("version", ["x", "1.0.0.x", "9" * 400, "-1", "1;1", "", "2.0.0"])
def test_a_strange_version_of_a_format_is_the_known_one(worked: Worked, version: str) -> None:
    for kind in ("application/openmetrics-text", "text/plain"):
        status, content_type, _ = get(worked.url, Accept=f"{kind}; version={version}")
        assert status == 200
        assert content_type == get(worked.url, Accept=kind)[1]


def test_other_methods_are_refused(worked: Worked) -> None:
    request = urllib.request.Request(worked.url, data=b"x", method="POST")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with pytest.raises(urllib.error.HTTPError) as error:
        opener.open(request, timeout=PATIENCE_S)
    with error.value:
        assert error.value.code == 405


def test_every_query_finds_its_metric_and_labels(worked: Worked) -> None:
    """Of the dashboard and of the alerts: their names, labels and values are of a real scrape."""
    known: dict[str, dict[str, set[str]]] = {"up": {}, **OF_REPLICAS}
    for name, pairs in worked.all:
        labels = known.setdefault(name, {})
        for label, value in pairs:
            labels.setdefault(label, set()).add(value)
    for where, query in queries():
        grouped = groupings(query) - SCRAPE_LABELS
        found = selectors(query)
        assert found, f"{where}: {query}"
        for selector in found:
            assert selector.name in known, f"{where}: {selector.name}"
            labels = known[selector.name]
            for matcher in selector.matchers.matchers:
                if matcher.name not in SCRAPE_LABELS:
                    values_of = labels.get(matcher.name, ())
                    assert any(fits(matcher, value) for value in values_of), f"{where}: {matcher}"
            assert grouped <= labels.keys(), f"{where}: {query}"


def test_the_queries_show_every_metric_of_ours() -> None:
    names = [selector.name for _, query in queries() for selector in selectors(query)]
    shown = {re.sub("_(bucket|sum|count)$", "", name) for name in names}
    assert ours() - shown == {
        "treadle_build_info",  # in the variables
        "treadle_training_step",
        "grpc_server_started_total",
    }


def test_every_alert_says_what_to_do() -> None:
    groups = yaml.safe_load((DEPLOY / "alerts.yaml").read_text("utf-8"))["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules) >= 10
    for rule in rules:
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert re.fullmatch(r"\d+[mh]", rule["for"])
        assert {"summary", "description", "runbook"} == rule["annotations"].keys()
        assert all(text.rstrip().endswith(".") for text in rule["annotations"].values()), rule


def test_runbooks_name_flags_and_metrics_that_exist(worked: Worked) -> None:
    text = (DEPLOY / "alerts.yaml").read_text("utf-8")
    flags = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(ServerConfig)}
    assert set(re.findall(r"--[a-z-]+[a-z]", text)) <= {*flags, "--fsck"}
    names = {re.sub("_(bucket|sum|count)$", "", name) for name, _ in worked.all} | {*OF_REPLICAS}
    assert set(re.findall(r"\b(?:treadle|grpc_server|process)_\w+?(?=_bucket|\b)", text)) <= names


def test_the_dashboard_is_whole() -> None:
    dashboard = json.loads((DEPLOY / "grafana.json").read_text("utf-8"))
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = set[tuple[int, int]]()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & places, f"{panel['title']} covers another panel"
        places |= cells
        if panel["type"] != "row":
            assert panel["description"], panel["title"]
            assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
    assert [variable["name"] for variable in dashboard["templating"]["list"]] == [
        "datasource",
        "job",
        "instance",
    ]


def test_the_scrape_loads_the_rules() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text("utf-8"))
    assert config["rule_files"] == ["alerts.yaml"]
    [scrape] = config["scrape_configs"]
    assert f'job="{scrape["job_name"]}"' in (DEPLOY / "alerts.yaml").read_text("utf-8")


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[tuple[str, dict[str, str], Server]]:
    """The URL of a server with callers, their tokens, and the server."""
    tokens = {}
    lines = []
    for name, role in (("ann", "admin"), ("bob", "trainer")):
        token = new_access_token()
        tokens[name] = token.text
        lines += [f"[callers.{name}]", f'role = "{role}"', "quotas = { sessions = 1 }"]
        lines += ['models = ["*"]'] if role != "admin" else []
        lines += [f"[[callers.{name}.tokens]]", f'id = "{token.id}"']
        lines += [f'sha256 = "{token.sha256.hex()}"']
    file = tmp_path / "callers.toml"
    file.touch(mode=0o600)
    file.write_text("\n".join(lines))
    server = Server(
        tmp_path / "data",
        *("--standby-workers", "0", "--callers-file", str(file), "--http-address", "127.0.0.1:0"),
        *("--audit-log", str(tmp_path / "audit.log")),
    )
    yield server.http_url + "/metrics", tokens, server
    server.close()


def test_only_admins_read_where_callers_need_a_token(
    guarded: tuple[str, dict[str, str], Server],
) -> None:
    url, tokens, server = guarded
    status, _, text = get(url)
    assert status == 401
    assert json.loads(text)["code"] == "unauthenticated"
    status, _, text = get(url, Authorization=f"Bearer {tokens['bob']}")
    assert status == 403
    assert "requires the role admin; you have the role trainer" in json.loads(text)["message"]
    status, _, text = get(url, Authorization=f"Bearer {tokens['ann']}")
    assert status == 200
    before = values(text)
    metadata = (("authorization", f"Bearer {tokens['bob']}"),)
    request = pb.GenerateRequest(model="m", n=2)
    with pytest.raises(grpc.RpcError):
        list(server.caller.stub.Generate(request, timeout=PATIENCE_S, metadata=metadata))
    refused = ("treadle_quota_refusals_total", (("quota", "sessions"),))
    after: Values = {}

    def has_moved() -> bool:
        after.update(values(get(url, Authorization=f"Bearer {tokens['ann']}")[2]))
        return after[refused] == before[refused] + 1

    wait_for(has_moved)
    assert not any("ann" in str(key) or "bob" in str(key) for key in after)
    audit = (server.data_dir.parent / "audit.log").read_text().splitlines()
    entries = [json.loads(line) for line in audit]
    refusals = [each["status"] for each in entries if each["method"] == "/metrics"]
    assert refusals == ["UNAUTHENTICATED", "PERMISSION_DENIED"]


def test_a_server_state_needs_a_reader_for_each_reading() -> None:
    with pytest.raises(ValueError, match="treadle_ready"):
        ServerState({each.name: float for each in READINGS if each.name != "treadle_ready"})


def test_readers_at_once_share_a_page() -> None:
    """So that many who ask all the time take a tenth of the server's time at most."""

    async def test() -> None:
        reads = []

        async def refresh() -> None:
            reads.append(1)
            await asyncio.sleep(0.05)

        def zero() -> float:
            return 0.0

        state = ServerState({each.name: (dict if each.label else zero) for each in READINGS})
        page = MetricsPage(state, refresh, OpenAuthenticator(), AuditLog(), is_public=True)
        found = await asyncio.gather(*(page.read(CallOrigin()) for _ in range(50)))
        assert len(reads) == 1
        assert len({data for data, _ in found}) == 1
        await page.read(CallOrigin())
        assert len(reads) == 1
        gone = asyncio.create_task(page.read(CallOrigin(), "application/openmetrics-text"))
        await asyncio.sleep(0)
        gone.cancel()  # the others get it nevertheless
        data, kind = await page.read(CallOrigin(), "application/openmetrics-text")
        assert kind.startswith("application/openmetrics-text")
        assert data.endswith(b"# EOF\n")
        assert len(reads) == 2

    asyncio.run(test())


class Clock:
    """A time that a test sets."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def report(training: TrainingMetrics, job: str, tokens: int) -> None:
    training.progress(
        job, step=1, tokens=tokens, tokens_per_second=5.0, train_loss=2.0, valid_loss=None
    )


def trained_tokens() -> float:
    return REGISTRY.get_sample_value("treadle_training_tokens_total") or 0.0


def loss(job: str) -> float | None:
    labels = {"job_id": job, "split": "train"}
    return REGISTRY.get_sample_value("treadle_training_loss_nats", labels)


def test_tokens_of_a_job_count_once() -> None:
    training = TrainingMetrics(Clock())
    before = trained_tokens()
    training.started("new", is_new=True)
    report(training, "new", 100)
    training.left("new")  # it pauses or dies, and repeats some steps
    training.started("new", is_new=False)
    for tokens in (50, 100, 130):
        report(training, "new", tokens)
    assert trained_tokens() - before == 130
    training.started("of an earlier server", is_new=False)
    report(training, "of an earlier server", 1000)
    report(training, "of an earlier server", 1010)
    assert trained_tokens() - before == 140


def test_values_of_a_job_stay_for_a_while_after_its_end() -> None:
    clock = Clock()
    training = TrainingMetrics(clock)
    training.started("short", is_new=True)
    report(training, "short", 1)
    clock.now_s += 3
    assert training.checkpoint_ages() == {"short": 3.0}
    training.checkpoint("short", 0.1)
    assert training.checkpoint_ages() == {"short": 0.0}
    training.left("short")
    assert training.checkpoint_ages() == {}
    assert loss("short") == 2.0
    clock.now_s += 301
    training.checkpoint_ages()
    assert loss("short") is None
    for number in range(100):
        name = f"job {number}"
        training.started(name, is_new=True)
        report(training, name, 1)
        training.left(name)
    assert sum(loss(f"job {number}") is not None for number in range(100)) == 16
