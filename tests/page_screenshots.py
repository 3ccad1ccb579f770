"""Takes the pictures of docs/page.md: trains small models on a server of its own, opens each view.

`make screenshots` runs it. It needs a minute, and Chromium.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from playwright.sync_api import Browser, Page, expect, sync_playwright

ROOT = Path(__file__).parent.parent
DATA = ROOT / "examples/data"
IMAGES = ROOT / "docs/images"
COLOURS = 16
"""Colours of a picture, in 4 bits each: text on flat surfaces needs few."""

WIDE = (960, 660)
NARROW = (360, 740)
PATIENCE_MS = 60_000
VERSE = (
    "To be, or not to be, that is the question:\n"
    "Whether 'tis nobler in the mind to suffer\n"
    "The slings and arrows of quantum entanglement"
)

PIXELS = """async data => {
    const blob = await (await fetch("data:image/png;base64," + data)).blob();
    const image = await createImageBitmap(blob);
    const canvas = new OffscreenCanvas(image.width, image.height);
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    const pixels = context.getImageData(0, 0, image.width, image.height).data;
    let text = "";
    for (let i = 0; i < pixels.length; i += 8192) {
        text += String.fromCharCode(...pixels.subarray(i, i + 8192));
    }
    return [image.width, image.height, btoa(text)];
}"""


@contextmanager
def served(data_dir: Path) -> Iterator[tuple[str, str]]:
    """Runs a server; yields its address for gRPC and its URL for browsers."""
    command = [sys.executable, "-m", "treadle.server", "--address", "127.0.0.1:0"]
    command += ["--http-address", "127.0.0.1:0", "--data-dir", str(data_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[-1], process.stdout.readline().split()[-1]
        finally:
            process.terminate()


def train(address: str, name: str, file: str, *flags: str) -> None:
    command = [sys.executable, "-m", "treadle.client", "train", "--server", address]
    command += ["--model", name, *flags, str(DATA / file)]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)


def sessions(first: int, last: int) -> list[str]:
    """Returns sessions of today's log, among them unusual ones."""
    lines = (DATA / "events_today.jsonl").read_text().splitlines()
    return [" ".join(json.loads(line)["events"]) for line in lines[first:last]]


def reduced(width: int, pixels: NDArray[np.uint8]) -> bytes:
    """Returns pixels as a PNG with a palette: frequent colours that differ from each other."""
    packed = pixels.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    values, places, counts = np.unique(packed, return_inverse=True, return_counts=True)
    found = np.stack([values >> 16, (values >> 8) & 255, values & 255], axis=1).astype(np.int32)
    chosen = [int(counts.argmax())]
    nearest = ((found - found[chosen[0]]) ** 2).sum(axis=1)
    while len(chosen) < COLOURS:
        chosen.append(int((nearest * np.sqrt(counts)).argmax()))
        nearest = np.minimum(nearest, ((found - found[chosen[-1]]) ** 2).sum(axis=1))
    palette = found[chosen]
    distances = ((found[:, None] - palette[None]) ** 2).sum(axis=2)
    rows = distances.argmin(axis=1)[places].astype(np.uint8).reshape(-1, width)
    pairs = (rows[:, ::2] << 4) | rows[:, 1::2]
    lines = np.hstack([np.zeros((len(rows), 1), np.uint8), pairs])
    head = struct.pack(">IIBBBBB", width, len(rows), 4, 3, 0, 0, 0)
    parts = [(b"IHDR", head), (b"PLTE", palette.astype(np.uint8).tobytes())]
    parts += [(b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b"")]
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


class Camera:
    """Opens views and takes pictures of them.

    Args:
        browser: The browser.
        url: The page's address.
    """

    def __init__(self, browser: Browser, url: str) -> None:
        self._browser = browser
        self._url = url
        self._blank = browser.new_page()

    def open(self, view: str, scheme: str = "light", size: tuple[int, int] = WIDE) -> Page:
        viewport = {"width": size[0], "height": size[1]}
        context = self._browser.new_context(
            color_scheme=scheme,  # type: ignore[arg-type]
            viewport=viewport,  # type: ignore[arg-type]
            reduced_motion="reduce",
        )
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.goto(f"{self._url}/{view}")
        return page

    def take(self, page: Page, name: str, most_height: int = 1000) -> None:
        """Stores the picture of a view, and closes it."""
        page.mouse.move(0, 0)
        width = page.evaluate("innerWidth")
        page.evaluate("scrollTo(0, 0)")
        end = page.evaluate("document.querySelector('.view').getBoundingClientRect().bottom + 24")
        height = min(int(end), most_height)
        clip = {"x": 0, "y": 0, "width": width, "height": height}
        shot = page.screenshot(full_page=True, clip=clip)  # type: ignore[arg-type]
        page.context.close()
        encoded = base64.b64encode(shot).decode()
        width, height, data = self._blank.evaluate(PIXELS, encoded)
        pixels = np.frombuffer(base64.b64decode(data), np.uint8).reshape(-1, 4)[:, :3]
        (IMAGES / f"{name}.png").write_bytes(reduced(width, pixels))


def take_all(camera: Camera, address: str) -> None:
    train(address, "names", "names.txt", "--layout", "lines", "--train-for", "8s")
    log = ["--format", "jsonl", "--column", "events", "--tokenizer", "events"]
    train(address, "log", "events.jsonl", *log, "--train-for", "5s")
    text = "tinyshakespeare.txt"
    train(address, "shakespeare", text, "--train-for", "20s")
    train(
        address, "shakespeare", text, "--train-for", "2m", "--validation-interval", "60", "--detach"
    )

    jobs = camera.open("#/jobs")
    row = jobs.locator("tbody tr").first
    expect(row.get_by_text("running")).to_be_visible(timeout=PATIENCE_MS)
    expect(row.locator("td.number").first).not_to_have_text("–", timeout=PATIENCE_MS)
    job_link = row.get_by_role("link").get_attribute("href") or ""
    camera.take(jobs, "jobs")
    for scheme, name, size in (("light", "job", WIDE), ("dark", "job-narrow", NARROW)):
        watched = camera.open(job_link, scheme, size)
        expect(watched.locator("circle").nth(9)).to_be_attached(timeout=PATIENCE_MS)
        watched.wait_for_timeout(500)
        camera.take(watched, name, 1040)

    page = camera.open("#/train", "dark")
    page.get_by_label("Text", exact=True).fill((DATA / text).read_text()[:600])
    page.get_by_label("Model name").fill("shakespeare")
    camera.take(page, "train")

    page = camera.open(job_link)
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Cancel the job").click()
    expect(page.locator("h1 + span")).to_have_text("cancelled", timeout=PATIENCE_MS)
    page.context.close()
    page = camera.open("#/model/shakespeare")
    page.get_by_label("Alias", exact=True).fill("production")
    page.get_by_role("button", name="Set alias").click()
    expect(page.get_by_role("row", name=re.compile("production"))).to_be_visible()
    camera.take(page, "model")
    page = camera.open("#/models", "dark")
    expect(page.locator("tbody tr")).to_have_count(3)
    camera.take(page, "models")

    for scheme, name, size in (
        ("light", "playground", WIDE),
        ("dark", "playground-narrow", NARROW),
    ):
        page = camera.open("#/playground?model=shakespeare", scheme, size)
        page.get_by_label("Prompt").fill("ROMEO:\n")
        page.get_by_label("Temperature").fill("0.8")
        page.get_by_text("More settings").click()
        page.get_by_label("Seed").fill("7")
        page.get_by_text("More settings").click()
        page.get_by_label("New tokens").fill("300" if size is WIDE else "120")
        page.get_by_role("button", name="Generate").click()
        expect(page.get_by_text("Ended because")).to_be_visible(timeout=PATIENCE_MS)
        camera.take(page, name, 1300)

    page = camera.open("#/score?model=shakespeare", "dark")
    page.get_by_label("Text", exact=True).fill(VERSE)
    page.get_by_role("button", name="Score").click()
    expect(page.get_by_role("heading", name="Heat map")).to_be_visible()
    camera.take(page, "score", 1280)

    page = camera.open("#/watcher?model=log")
    lines = sessions(10, 22)
    page.get_by_label("Lines", exact=True).fill("\n".join(lines))
    page.get_by_role("button", name="Watch these lines").click()
    expect(page.get_by_text(re.compile(f"^{len(lines)} lines")).first).to_be_visible()
    camera.take(page, "watcher", 1200)
    page = camera.open("#/server", "dark")
    expect(page.get_by_role("heading", name="Limits")).to_be_visible()
    camera.take(page, "server")


def main() -> None:
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        sys.exit("Chromium is not installed: apt-get install chromium")
    IMAGES.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        served(Path(folder) / "data") as (address, url),
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        take_all(Camera(browser, url), address)
        browser.close()
    sizes = {path.name: path.stat().st_size for path in sorted(IMAGES.glob("*.png"))}
    for name, size in sizes.items():
        print(f"{size:8,} {name}")
    print(f"{sum(sizes.values()):8,} bytes in all")


if __name__ == "__main__":
    os.environ.setdefault("NUMBA_CACHE_DIR", str(ROOT / ".venv/kernels"))
    main()
