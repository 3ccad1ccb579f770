"""Run the page in a headless Chromium against a server of its own, and print what it shows.

examples/browser/build.sh build/examples/browser
python examples/browser/run.py build/examples/browser

`make example-browser` does both. It needs the Python package playwright and a Chromium. Exit code
77: one of them is missing, and standard output says which.
"""

import contextlib
import functools
import http.server
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from treadle.client import Client

NAMES = Path(__file__).parent.parent / "data" / "names.txt"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class Pages(http.server.SimpleHTTPRequestHandler):
    """Serves the folder of the page, and logs nothing."""

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def page_server(folder):
    """Yields the origin of the page, on a port of its own."""
    handler = functools.partial(Pages, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@contextlib.contextmanager
def treadle_server(folder, origin):
    """Yields the addresses of a server, for gRPC and for HTTP, that lets the page call."""
    words = [sys.executable, "-m", "treadle.server", "--data-dir", str(folder / "data")]
    words += ["--address", "127.0.0.1:0", "--http-address", "127.0.0.1:0"]
    words += ["--http-allow-origin", origin]
    log = folder / "log"
    with open(log, "wb") as file:
        server = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=file, text=True)
    with server:
        try:
            grpc = re.search(r"listening on (\S+)", server.stdout.readline())
            http = re.search(r"(http://\S+)", server.stdout.readline()) if grpc else None
            if not http:
                sys.exit(f"run.py: the server does not start: {log.read_text()}")
            yield grpc[1], http[1]
        finally:
            server.terminate()


def use(page):
    """Generates, scores and is refused, as a reader of the page does."""
    result = page.locator("#result")
    fault = page.locator("#fault")
    done = page.locator("form[aria-busy=false]")
    text = page.get_by_label("Prompt")
    for prompt in ("an", "jo"):
        text.fill(prompt)
        page.get_by_role("button", name="Generate").click()
        done.wait_for()
        print(result.inner_text())
    for word in ("maria", "m4ria"):
        text.fill(word)
        page.get_by_role("button", name="Score").click()
        done.wait_for()
        print(result.inner_text() or f"refused: {fault.inner_text()}")


def main(build):
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        print("playwright is not installed")
        return 77
    browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser_path is None:
        print("Chromium is not installed")
        return 77
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        origin = stack.enter_context(page_server(build / "page"))
        grpc_address, http_address = stack.enter_context(treadle_server(folder, origin))
        with Client(grpc_address) as client:
            client.train(NAMES, model="names", layout="lines", cell="gru", max_steps=300).result()
        playwright = stack.enter_context(sync_playwright())
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("pageerror", lambda error: print(f"error of the page: {error}"))
        page.goto(f"{origin}/?server={http_address}&model=names")
        use(page)
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
