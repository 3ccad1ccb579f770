"""The page in a real browser: what a user does with it, and what it must never do."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from axe_core_python.base import AXE_SCRIPT  # type: ignore[import-untyped]
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from treadle.model import train
from treadle.model.config import (
    DataConfig,
    LimitsConfig,
    NetworkConfig,
    ReportConfig,
    TokenizerConfig,
    TrainConfig,
)
from treadle.model.enums import CorpusLayout, TokenizerKind
from treadle.server.storage.data_dir import DataDir
from treadle.server.storage.model_version import MODEL_FILE
from treadle.v1 import sequence_pb2 as pb

from .harness import TEXT, Server, tiny_spec
from .samples import put_model

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

PATIENCE_MS = 30_000
LN_2 = 0.6931471805599453
RUNNING_TEXT = TEXT.replace(b". ", b".\n")
SESSIONS = b"login list read close logout\nlogin read read logout\n" * 20
HOSTILE = '<img src=x onerror="document.title=1"><script>alert(1)</script>\n'
VIEWS = [
    "#/jobs",
    "#/job/{job}",
    "#/train",
    "#/models",
    "#/model/shared",
    "#/playground?model=shared",
    "#/score?model=shared",
    "#/watcher?model=lines",
    "#/server",
]
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def serve(data_dir: Path, *flags: str) -> Iterator[Server]:
    """Yields a server with an HTTP address, whose log stays clean."""
    server = Server(data_dir, "--http-address", "127.0.0.1:0", "--standby-workers", "0", *flags)
    yield server
    server.close()
    for sign in ("Traceback", "Fatal", "internal error", "never retrieved"):
        assert sign not in server.log


def put(
    data_dir: DataDir, name: str, text: bytes, layout: CorpusLayout, kind: TokenizerKind
) -> None:
    """Trains a tiny model in this process, which takes a fraction of a second."""
    config = TrainConfig(
        tokenizer=TokenizerConfig(kind=kind),
        network=NetworkConfig(hidden_size=8, embedding_size=4),
        data=DataConfig(batch_size=2, window=8, layout=layout),
        report=ReportConfig(sample_tokens=0),
        limits=LimitsConfig(max_steps=60),
    )
    draft = data_dir.models.new_draft()
    train(text, config).save(draft / MODEL_FILE)
    data_dir.models.claim(name, draft)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with models of running text, of lines, of hostile text, and one in two versions."""
    path = tmp_path_factory.mktemp("page") / "data"
    data_dir = DataDir(path)
    characters = TokenizerKind.CHARACTERS
    put(data_dir, "shared", RUNNING_TEXT, CorpusLayout.TEXT, characters)
    put(data_dir, "lines", SESSIONS, CorpusLayout.LINES, TokenizerKind.EVENTS)
    put(data_dir, "hostile", HOSTILE.encode() * 20, CorpusLayout.TEXT, characters)
    put_model(data_dir, "named")
    put_model(data_dir, "named")
    data_dir.close()
    yield from serve(path, "--training-slots", "2")


@pytest.fixture(scope="module")
def job(server: Server) -> str:
    """The id of a job that has ended, on hostile text."""
    spec = tiny_spec("from-job", max_steps=40)
    spec.report.sample_tokens = 200
    return list(server.caller.train(spec, HOSTILE.encode() * 20))[-1].job


class Watched:
    """What the pages of one context report."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.problems: list[str] = []
        self.foreign: list[str] = []
        self.urls: list[str] = []
        self._url = url
        context.on("request", lambda request: self._add_request(request.url))
        context.on("console", lambda message: self._add_message(message.type, message.text))
        context.on("weberror", lambda error: self.problems.append(str(error.error)))
        context.on("dialog", lambda dialog: self.problems.append(dialog.message))

    def _add_request(self, url: str) -> None:
        self.urls.append(url)
        if not url.startswith(self._url):
            self.foreign.append(url)

    def _add_message(self, kind: str, text: str) -> None:
        # The browser reports each refused or interrupted request here, which some tests cause.
        if kind in ("error", "warning") and not text.startswith("Failed to load resource"):
            self.problems.append(text)


def opener(browser: Browser, server: Server) -> Iterator[Open]:
    """Yields what opens a view in a context of its own, and checks what its pages report."""
    contexts: list[tuple[BrowserContext, Watched]] = []

    def open_view(view: str = "", **options: Any) -> Page:
        options.setdefault("viewport", {"width": 1100, "height": 800})
        context = browser.new_context(reduced_motion="reduce", **options)
        context.set_default_timeout(PATIENCE_MS)
        contexts.append((context, Watched(context, server.http_url)))
        page = context.new_page()
        page.goto(f"{server.http_url}/{view}")
        return page

    yield open_view
    for context, watched in contexts:
        context.close()
        assert watched.problems == []
        assert watched.foreign == []


@pytest.fixture
def view(browser: Browser, server: Server) -> Iterator[Open]:
    yield from opener(browser, server)


def go_to(page: Page, address: str) -> None:
    """Opens another view, and waits until it has loaded."""
    script = """address => new Promise(resolve => {
        addEventListener("hashchange", () => setTimeout(resolve), {once: true});
        location.hash = address;
    })"""
    page.evaluate(script, address)
    settled(page)


def settled(page: Page) -> None:
    """Waits until a view has loaded."""
    expect(page.locator("main h1")).to_be_visible(timeout=PATIENCE_MS)
    content = page.locator("main .view > :not(:empty)").first
    expect(content).to_be_visible(timeout=PATIENCE_MS)
    expect(page.get_by_text("Loading…")).to_have_count(0, timeout=PATIENCE_MS)


def figure(page: Page, name: str) -> str:
    """Returns the figure of a view that has a name."""
    pair = page.locator("dl > div").filter(has=page.get_by_text(name, exact=True))
    return pair.locator("dd").inner_text()


def test_an_empty_server_says_what_to_do(view: Open, server: Server) -> None:
    page = view("page/icon.svg")
    for method in ("ListJobs", "ListModels"):
        page.route(f"**/{method}", lambda route: route.fulfill(json={}))
    page.goto(server.http_url)
    expect(page.get_by_role("heading", name="No jobs yet")).to_be_visible()
    for name in ("Playground", "Score", "Log watcher"):
        page.get_by_role("link", name=name, exact=True).click()
        expect(page.get_by_role("heading", name=name)).to_be_focused()
        expect(page.get_by_role("heading", name="There is no model yet")).to_be_visible()
    page.get_by_role("link", name="Train a model").click()
    expect(page).to_have_title("Train a model · Treadle")


def test_a_job_is_started_watched_paused_and_cancelled(view: Open, server: Server) -> None:
    page = view("#/train")
    page.get_by_role("button", name="Start training").click()
    expect(page.get_by_label("Text", exact=True)).to_be_focused()
    expect(page.get_by_text("Paste a text, or choose a file.")).to_be_visible()
    page.get_by_label("Text", exact=True).fill(TEXT.decode())
    page.get_by_label("Model name").fill("from-the-page")
    page.get_by_label("Train for").fill("2")
    page.get_by_label("Unit of the time").select_option("hours")
    page.get_by_text("More settings").click()
    page.get_by_label("Hidden units").fill("8")
    page.get_by_role("button", name="Start training").click()

    expect(page.get_by_role("heading", name="from-the-page")).to_be_visible()
    curve = page.locator("polyline.train")
    curve.wait_for(state="attached")
    first = curve.get_attribute("points")
    expect(curve).not_to_have_attribute("points", first or "", timeout=PATIENCE_MS)
    expect(page.get_by_role("img", name=re.compile("Training [0-9.]+"))).to_be_visible()
    assert re.fullmatch("[0-9.]+", figure(page, "Training loss"))

    page.get_by_role("button", name="Pause").click()
    expect(page.locator("h1 + span")).to_have_text("paused", timeout=PATIENCE_MS)
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("h1 + span")).to_have_text("running", timeout=PATIENCE_MS)

    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("button", name="Keep it")).to_be_focused()
    page.get_by_role("button", name="Keep it").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Cancel the job").click()
    expect(page.locator("h1 + span")).to_have_text("cancelled", timeout=PATIENCE_MS)
    (job,) = server.caller.jobs(model="from-the-page")
    assert job.spec.network.hidden_size == 8
    assert job.spec.limits.max_time_s == 7200

    page.get_by_role("link", name="Open the model").click()
    expect(page.get_by_role("heading", name="Training record of version 1")).to_be_visible()
    page.go_back()
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Delete the job").click()
    expect(page.get_by_role("heading", name="Jobs", exact=True)).to_be_visible()
    assert list(server.caller.jobs(model="from-the-page")) == []


def test_a_job_of_a_file_can_be_followed_from_the_list(
    view: Open, server: Server, tmp_path: Path
) -> None:
    (tmp_path / "lines.csv").write_text("n,word\n" + "1,spin\n2,weave\n" * 40)
    page = view("#/train")
    page.get_by_label("Or a file").set_input_files(tmp_path / "lines.csv")
    page.get_by_label("Model name").fill("words")
    page.get_by_label("Train for").fill("1")
    page.get_by_text("More settings").click()
    page.get_by_label("File format").select_option("CSV")
    page.get_by_label("Field or column").fill("word")
    page.get_by_role("button", name="Start training").click()
    expect(page.locator("h1 + span")).to_have_text("succeeded", timeout=PATIENCE_MS)
    expect(page.locator(".samples pre").first).to_be_visible()
    page.get_by_role("link", name="Jobs").click()
    row = page.get_by_role("row", name=re.compile("^words"))
    expect(row).to_contain_text("succeeded")
    row.get_by_role("link").click()
    expect(page.get_by_role("link", name="Open the model")).to_be_visible()


def test_the_reason_of_a_failure_is_given_once(view: Open) -> None:
    page = view("#/train")
    page.get_by_label("Text", exact=True).fill("a")
    page.get_by_label("Model name").fill("short")
    page.get_by_role("button", name="Start training").click()
    expect(page.locator("h1 + span")).to_have_text("failed", timeout=PATIENCE_MS)
    reason = page.get_by_text("the corpus has 1 token").filter(visible=True)
    expect(reason).to_have_count(1)


def test_a_list_that_is_updated_keeps_the_focus(view: Open, job: str) -> None:
    page = view("#/jobs")
    link = page.locator("tbody a").first
    link.focus()
    for _ in range(2):
        with page.expect_response("**/ListJobs"):
            pass
    expect(link).to_be_focused()


def test_a_text_is_generated_and_continued_to_the_same_bits(view: Open, server: Server) -> None:
    page = view("#/playground?model=shared")
    page.get_by_label("Prompt").fill("the ")
    page.get_by_label("Temperature").fill("0.7")
    page.get_by_label("New tokens").fill("40")
    page.get_by_text("More settings").click()
    page.get_by_label("Seed").fill("5")
    page.get_by_role("button", name="Generate").click()
    status = page.get_by_text(re.compile(r"^40 tokens"))
    expect(status).to_contain_text("log-probability", timeout=PATIENCE_MS)
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_text(re.compile(r"^80 tokens"))).to_be_visible(timeout=PATIENCE_MS)

    text = page.get_by_role("group", name="Generated text")
    replies = server.caller.generate(
        "shared", prompt="the ", max_new_tokens=80, seed=5, temperature=0.7, log_probabilities=True
    )
    assert text.text_content() == "the " + "".join(reply.text for reply in replies)
    shown = page.get_by_text(re.compile(r"^80 tokens")).inner_text()
    total = replies[-1].result.total_log_probability
    assert f"log-probability −{-total:.2f} nats" in shown

    page.get_by_text("The tokens as a table").click()
    rows = page.get_by_role("region", name="Tokens: Generated text").locator("tbody tr")
    expect(rows).to_have_count(80)
    token = replies[0].tokens[0]
    bits = f"{-token.log_probability / LN_2:.2f}"
    assert rows.first.locator("td").nth(1).inner_text() == bits


def test_a_text_that_is_stopped_can_be_continued(view: Open) -> None:
    page = view("#/playground?model=shared")
    page.get_by_label("New tokens").fill("100000")
    page.get_by_role("button", name="Generate").click()
    text = page.get_by_role("group", name="Generated text")
    expect(text.locator("span").nth(20)).to_be_attached(timeout=PATIENCE_MS)
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("Stopped.")).to_be_visible()
    before = text.text_content() or ""
    page.get_by_label("New tokens").fill("5")
    page.get_by_label("Add text, then continue").fill(" dog")
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_text(re.compile(r"^5 tokens"))).to_be_visible(timeout=PATIENCE_MS)
    after = text.text_content() or ""
    assert after.startswith(before + " dog")
    assert len(after) == len(before) + 9


def test_a_wrong_setting_is_named(view: Open) -> None:
    page = view("#/playground?model=shared")
    page.get_by_text("More settings").click()
    page.get_by_label("Top-p").fill("1")
    page.get_by_label("Prompt").fill("ö")
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_role("alert")).to_contain_text("'ö'")


@pytest.mark.parametrize(
    ("replies", "shown"),
    [
        # Two bytes of one character have no text of their own.
        ([["h", "h:1"], ["é!", ":2", ":1", "!:4"]], ["h 1", "é 3", "! 4"]),
        # The space between two events belongs to none.
        ([["log in out", "log:1", "in:2", "out:9"]], ["log 1", " in 2", " out 9"]),
        # The tokens are ahead of text that could become a stop sequence.
        ([["a", "a:1", "b:2", "c:3"], ["b", "d:4"], ["cd"]], ["a 1", "b 2", "c 3", "d 4"]),
        # An unknown token stands for what the next one leaves.
        ([["see ??? now", "see:1", "<unk>:7", " now:2"]], ["see 1", " ??? 7", " now 2"]),
        # Text without a token at the end.
        ([["ab", "a:1"]], ["a 1", "b"]),
        # A stop sequence has tokens and no text.
        ([["a", "a:1"], ["", "b:2", ":0"]], ["a 1"]),
    ],
)
def test_tokens_colour_the_text_that_they_stand_for(
    view: Open, replies: list[list[str]], shown: list[str]
) -> None:
    page = view("#/server")
    script = """async replies => {
        const { HeatText, surprisal } = await import("/page/heat.js");
        const heat = new HeatText("text");
        for (const [text, ...tokens] of replies) {
            heat.add(text, tokens.map(token => {
                const [text, bits] = token.split(":");
                return { text, logProbability: -bits * Math.LN2 };
            }));
        }
        heat.settle();
        return heat.tokens.map(({ text, tokens }) => {
            const bits = tokens.map(surprisal).reduce((a, b) => a + b, 0);
            return tokens.length ? `${text} ${Math.round(bits)}` : text;
        });
    }"""
    assert page.evaluate(script, replies) == shown


def test_a_score_is_that_of_the_service(view: Open, server: Server) -> None:
    page = view("#/score?model=shared")
    source = "the quick brown fox\nover the dog"
    page.get_by_label("Text", exact=True).fill(source)
    page.get_by_role("button", name="Score").click()
    expect(page.get_by_role("heading", name="Heat map")).to_be_visible(timeout=PATIENCE_MS)
    (score,) = server.caller.score("shared", [source], log_probabilities=True).scores
    assert figure(page, "Bits per character") == f"{score.bits_per_character:.3f}"
    assert figure(page, "Perplexity") == f"{score.perplexity:.2f}"
    assert page.get_by_role("group", name="Scored text").text_content() == source
    surprisals = sorted((-token.log_probability / LN_2 for token in score.tokens), reverse=True)
    worst = page.get_by_role("region", name="Most surprising tokens").locator("tbody tr")
    assert worst.first.locator("td").nth(2).inner_text() == f"{surprisals[0]:.2f}"


def test_a_precision_is_chosen_and_shown(view: Open, server: Server) -> None:
    int8 = pb.INFERENCE_PRECISION_INT8
    source = "the quick brown fox over the dog"
    # First, since kernels that are not there yet are waited for.
    (score,) = server.caller.score("shared", [source], inference_precision=int8).scores
    fields = {"max_new_tokens": 30, "temperature": 0, "inference_precision": int8}
    generated = server.caller.text("shared", **fields)

    page = view("#/score?model=shared")
    page.get_by_label("Text", exact=True).fill(source)
    page.get_by_role("button", name="Score").click()
    expect(page.get_by_role("heading", name="Heat map")).to_be_visible(timeout=PATIENCE_MS)
    assert figure(page, "Precision") == "fp32"
    page.get_by_label("Precision").select_option("int8")
    page.get_by_role("button", name="Score").click()
    expect(page.locator("dd").filter(has_text="int8")).to_be_visible(timeout=PATIENCE_MS)
    assert figure(page, "Log-probability") == f"−{-score.total_log_probability:.2f} nats"

    page = view("#/playground?model=shared")
    page.get_by_label("New tokens").fill("30")
    page.get_by_text("More settings").click()
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Precision").select_option("int8")
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_text(re.compile(r"precision int8"))).to_be_visible(timeout=PATIENCE_MS)
    assert page.get_by_role("group", name="Generated text").text_content() == generated

    page = view("#/watcher?model=lines")
    page.get_by_label("Precision").select_option("int8")
    page.get_by_label("Lines", exact=True).fill("login list read close logout")
    page.get_by_role("button", name="Watch these lines").click()
    expect(page.get_by_text("Precision int8.").first).to_be_visible(timeout=PATIENCE_MS)

    page = view("#/server")
    expect(page.get_by_text("fp32")).to_be_visible()


def test_lines_of_a_log_are_marked(view: Open, server: Server) -> None:
    lines = ["login list read close logout", "logout login", "login read read logout"]
    scores = server.caller.score("lines", lines, ranks=True).scores
    worst = [max(token.rank for token in score.tokens) for score in scores]
    assert len(set(worst)) > 1
    page = view("#/watcher?model=lines")
    page.get_by_label("A token may have rank up to").fill(str(min(worst)))
    page.get_by_label("Lines", exact=True).fill("\n".join(lines))
    page.get_by_role("button", name="Watch these lines").click()
    expect(page.get_by_text(re.compile("^3 lines")).first).to_be_visible(timeout=PATIENCE_MS)
    rows = page.get_by_role("region", name="Scored lines").locator("tbody tr")
    assert [int(rows.nth(i).locator("td").nth(3).inner_text()) for i in range(3)] == worst
    marked = [rows.nth(i).locator("td").nth(1).inner_text() != "" for i in range(3)]
    assert marked == [rank > min(worst) for rank in worst]
    page.get_by_label("Show marked lines only").check()
    expect(rows.filter(visible=True)).to_have_count(sum(marked))


def test_lines_of_a_running_text_continue_those_before(view: Open) -> None:
    lines = ["the quick brown fox", "jumps over", "the lazy dog"]

    def watch(*pastes: str) -> list[str]:
        page = view("#/watcher?model=shared")
        for number, paste in enumerate(pastes, 1):
            page.get_by_label("Lines", exact=True).fill(paste)
            page.get_by_role("button", name="Watch these lines").click()
            seen = "".join(pastes[:number]).count("\n")
            text = page.get_by_text(re.compile(f"^{seen} lines?,"))
            expect(text.first).to_be_visible(timeout=PATIENCE_MS)
            expect(page.get_by_role("button", name="Watch these lines")).to_be_enabled()
        return page.get_by_role("region", name="Scored lines").locator("tbody tr").all_inner_texts()

    at_once = watch("".join(f"{line}\n" for line in lines))
    assert watch(*(f"{line}\n" for line in lines)) == at_once


def test_models_get_and_lose_aliases_and_versions(view: Open) -> None:
    page = view("#/models")
    page.get_by_role("link", name="named").click()
    page.get_by_label("Alias", exact=True).fill("production")
    page.get_by_label("For", exact=True).select_option("version 1")
    page.get_by_role("button", name="Set alias").click()
    expect(page.get_by_role("row", name=re.compile("^1 production"))).to_be_visible()
    page.get_by_label("Alias", exact=True).fill("7")
    page.get_by_role("button", name="Set alias").click()
    expect(page.get_by_role("alert")).to_contain_text("7")
    page.get_by_role("button", name="Record of version 1").click()
    expect(page.get_by_role("heading", name="Training record of version 1")).to_be_focused()
    page.get_by_role("button", name="Remove the alias production").click()
    expect(page.get_by_text("No aliases yet.")).to_be_visible()
    page.get_by_role("button", name="Delete version 1").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("button", name="Delete version 1")).to_have_count(0)
    page.get_by_role("button", name="Delete model").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("heading", name="Models", exact=True)).to_be_visible()
    expect(page.get_by_role("link", name="named")).to_have_count(0)


def test_hostile_text_stays_text(view: Open, server: Server, job: str) -> None:
    page = view(f"#/job/{job}")
    expect(page.locator(".samples pre").first).to_contain_text("<", timeout=PATIENCE_MS)
    page.goto(f"{server.http_url}/#/playground?model=hostile")
    page.get_by_label("Prompt").fill(HOSTILE)
    page.get_by_label("Temperature").fill("0")
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_text(re.compile("^200 tokens"))).to_be_visible(timeout=PATIENCE_MS)
    assert HOSTILE in (page.get_by_role("group", name="Generated text").text_content() or "")
    page.goto(f"{server.http_url}/#/score?model=hostile")
    page.get_by_label("Text", exact=True).fill(HOSTILE)
    page.get_by_role("button", name="Score").click()
    expect(page.get_by_role("group", name="Scored text")).to_have_text(HOSTILE)
    for address in (f"#/model/{HOSTILE}", f"#/job/{HOSTILE}", f"#/{HOSTILE}"):
        go_to(page, address)
    assert page.locator("main img, main script").count() == 0


def test_a_lost_connection_is_taken_up_again(browser: Browser, server: Server) -> None:
    spec = tiny_spec("long", max_steps=10**12)
    spec.report.progress_interval_s = 0.05
    job = next(server.caller.train(spec, TEXT)).job
    with Relay(server.http_url) as relay:
        page = browser.new_page()
        page.goto(f"{relay.url}/#/job/{job}")
        page.locator("polyline.train").wait_for(state="attached")
        relay.cut()
        expect(page.get_by_text("The server cannot be reached.")).to_be_visible()
        server.caller.stub.PauseJob(pb.PauseJobRequest(job=job))
        relay.sent.clear()
        relay.join()
        expect(page.locator("h1 + span")).to_have_text("paused", timeout=PATIENCE_MS)
        expect(page.get_by_text("The server cannot be reached.")).to_have_count(0)
        assert re.search(rb'"afterSequence":"[1-9]', relay.sent)
        page.close()
    server.caller.stub.CancelJob(pb.CancelJobRequest(job=job))


class Relay:
    """Connects a port of its own to a server, until the connection is cut.

    Args:
        url: The server's URL.
    """

    def __init__(self, url: str) -> None:
        self._target = (urlsplit(url).hostname or "", urlsplit(url).port or 0)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = "http://{}:{}".format(*self._listener.getsockname())
        self.sent = bytearray()
        """What was sent to the server."""
        self._open: list[socket.socket] = []
        self._is_cut = False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                self._connect(self._listener.accept()[0])

    def _connect(self, near: socket.socket) -> None:
        if self._is_cut:
            near.close()
            return
        far = socket.create_connection(self._target)
        self._open += [near, far]
        for ends in ((near, far, True), (far, near, False)):
            threading.Thread(target=self._copy, args=ends, daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket, is_request: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if is_request:
                    self.sent += data
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """Ends all connections, and refuses new ones."""
        self._is_cut = True
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._open.clear()

    def join(self) -> None:
        """Accepts connections again."""
        self._is_cut = False

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *error: object) -> None:
        self.cut()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def test_the_keyboard_is_enough(view: Open) -> None:
    page = view("#/jobs")
    settled(page)

    def tab_to(role: str, name: str) -> None:
        target = page.get_by_role(role, name=name, exact=True)  # type: ignore[arg-type]
        expect(target.first).to_be_visible()
        for _ in range(40):
            if target.first.evaluate("element => element === document.activeElement"):
                return
            page.keyboard.press("Tab")
        pytest.fail(f"Tab does not reach {name}")

    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    tab_to("link", "Playground")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Playground")).to_be_focused()
    tab_to("combobox", "Model")
    page.keyboard.type("shared")
    tab_to("textbox", "Prompt")
    page.keyboard.type("the ")
    tab_to("button", "Generate")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Continue")).to_be_focused(timeout=PATIENCE_MS)
    page.keyboard.press("Enter")
    expect(page.get_by_text(re.compile("^400 tokens"))).to_be_visible(timeout=PATIENCE_MS)
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_and_nothing_is_too_wide(
    view: Open, job: str, scheme: str
) -> None:
    page = view("", color_scheme=scheme, bypass_csp=True)
    page.evaluate(AXE_SCRIPT)
    # Only the colours differ.
    options = "{runOnly: ['color-contrast']}" if scheme == "dark" else ""
    for address in VIEWS:
        page.set_viewport_size({"width": 1100, "height": 800})
        go_to(page, address.format(job=job))
        use(page)
        for details in page.locator("main details").all():
            details.evaluate("element => { element.open = true }")
        found = page.evaluate(f"axe.run({options})")["violations"]
        faults = [
            f"{address} {fault['id']}: {node['html']} {node['failureSummary']}"
            for fault in found
            for node in fault["nodes"]
        ]
        assert not faults, "\n".join(faults)
        page.set_viewport_size({"width": 360, "height": 700})
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= 360, address


def use(page: Page) -> None:
    """Fills a view with results, where it shows some."""
    main = page.locator("main")
    for label, text in (
        ("Text", "the quick dog"),
        ("Lines", "login logout\nlist"),
        ("Prompt", "a"),
    ):
        if main.get_by_label(label, exact=True).count():
            main.get_by_label(label, exact=True).fill(text)
    for name in ("Generate", "Score", "Watch these lines"):
        button = main.get_by_role("button", name=name)
        if button.count():
            button.click()
            expect(main.locator("[class^=heat-]").nth(1)).to_be_attached(timeout=PATIENCE_MS)
            expect(button).to_be_enabled()


def test_the_server_describes_itself(view: Open, server: Server) -> None:
    page = view("#/server")
    expect(page.get_by_role("heading", name="In use")).to_be_visible()
    assert figure(page, "Version") == server.caller.info().version
    expect(page.get_by_role("heading", name="You")).to_have_count(0)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[tuple[Server, str]]:
    """A server with one caller, and the token of it."""
    callers = tmp_path / "callers.toml"
    command = [sys.executable, "-m", "treadle.server", "token", "create", "ann"]
    command += ["--role", "reader", "--models", "*", "--callers-file", str(callers)]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    for server in serve(tmp_path / "data", "--callers-file", str(callers)):
        yield server, made.stdout.strip()


def test_a_token_is_asked_for_and_stays_in_its_tab(
    browser: Browser, guarded: tuple[Server, str]
) -> None:
    server, token = guarded
    views = opener(browser, server)
    page = next(views)("#/server")
    dialog = page.get_by_role("dialog", name="This server asks who you are")
    expect(page.get_by_label("Token")).to_be_focused()
    page.get_by_label("Token").fill("wrong")
    page.keyboard.press("Enter")
    expect(dialog.get_by_role("alert")).to_contain_text("The token was not accepted: the header")
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="You")).to_be_visible()
    assert figure(page, "Name") == "ann"
    page.reload()
    expect(page.get_by_role("heading", name="You")).to_be_visible()
    assert token not in page.url
    kept = page.evaluate("[Object.entries(localStorage), document.cookie]")
    assert kept == [[], ""]
    page.goto(f"{server.http_url}/#/train")
    page.get_by_label("Text", exact=True).fill("abc" * 100)
    page.get_by_label("Model name").fill("mine")
    page.get_by_role("button", name="Start training").click()
    expect(page.get_by_role("alert")).to_contain_text("You may not do this")
    page.goto(f"{server.http_url}/#/server")
    page.get_by_role("button", name="Forget my token").click()
    expect(dialog).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("alert")).to_contain_text("none was given")
    next(views, None)
