"""The reader of a page: runs every command block as it stands, in order.

It follows each page from its first block to its last, in a directory with a fresh copy of
the checkout, with a server of the page's own: either the one that the page starts or, until
then, one that the test starts. changes.py has all that differs from the pages.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from .changes import ADDRESS, EDITS, ENDLESS, HTTP_ADDRESS, NOT_RUN, PROGRAMS, Endless
from .pages import RUN, Block, blocks

PATIENCE_S = 900.0
"""After this a block hangs. A start that compiles every kernel on a busy machine is within it."""

SERVER = re.compile(
    r"^treadle-server(?! token| .*--(?:warm|check-health|fsck|help|version))", re.MULTILINE
)
PRINTS = re.compile(r"# prints: (.*)$", re.MULTILINE)


def is_run(block: Block) -> bool:
    """Returns whether the tests run a block."""
    if block.language not in RUN:
        return False
    return not any(entry.page == block.page and entry.text in block.text for entry in NOT_RUN)


def asks_a_server(block: Block) -> bool:
    """Returns whether a block needs a server."""
    return block.language == "sh" or ADDRESS in block.text or HTTP_ADDRESS in block.text


def edited(block: Block, address: str, http_address: str) -> str:
    """Returns the text of a block as the tests run it."""
    text = block.text
    for edit in EDITS:
        if edit.page == block.page:
            text = text.replace(edit.old, edit.new)
    return text.replace(ADDRESS, address).replace(HTTP_ADDRESS, http_address)


def brief(printed: str) -> str:
    """Returns the last lines that a block printed, the beginning of each."""
    return "\n".join(line[:200] for line in printed.splitlines()[-20:])


class Running:
    """A shell with the commands of one block, all that they print kept in memory."""

    def __init__(self, commands: str, folder: Path, variables: dict[str, str]) -> None:
        self._output = os.memfd_create("printed")
        self._process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=folder,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def printed(self) -> str:
        """Returns what was printed until now."""
        return os.pread(self._output, 1 << 24, 0).decode(errors="replace")

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Waits until a pattern was printed."""
        end = time.monotonic() + PATIENCE_S
        while (found := re.search(pattern, self.printed())) is None:
            assert self._process.poll() is None, f"ended with:\n{brief(self.printed())}"
            assert time.monotonic() < end, f"still no {pattern!r} in:\n{brief(self.printed())}"
            time.sleep(0.02)
        return found

    def interrupt(self) -> None:
        """Presses Ctrl-C, which every process of the terminal hears."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGINT)

    def end(self) -> int:
        """Waits for the end and returns the exit code; kills what hangs."""
        try:
            return self._process.wait(PATIENCE_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def close(self) -> None:
        os.close(self._output)


def follow(page: str, folder: Path) -> None:
    """Runs all blocks of a page, in a folder with a copy of the checkout."""
    Reader(page, folder).follow()


class Reader:
    """Follows one page."""

    def __init__(self, page: str, folder: Path) -> None:
        self._page = page
        self._folder = folder
        self._server: Running | None = None
        self._address = ""
        self._http_address = ""
        self._has_http = any(HTTP_ADDRESS in block.text for block in blocks(page))
        self._variables = {
            name: value for name, value in os.environ.items() if not name.startswith("TREADLE_")
        } | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "TREADLE_DATA_DIR": str(folder / "treadle-data"),
            # Where `treadle config` keeps profiles.
            "XDG_CONFIG_HOME": str(folder / "config"),
            "CURL_HOME": str(folder),
        }
        (folder / ".curlrc").write_text('fail-with-body\nnoproxy = "127.0.0.1"\n')

    def follow(self) -> None:
        """Runs all blocks of the page."""
        try:
            for block in filter(is_run, blocks(self._page)):
                if SERVER.search(block.text):
                    self._start(edited(block, self._address, "127.0.0.1:0"))
                    continue
                if self._server is None and asks_a_server(block):
                    http = " --http-address 127.0.0.1:0" if self._has_http else ""
                    self._start(f"treadle-server{http}")
                if block.language == "python":
                    self._run_python(block)
                else:
                    self._run_shell(block)
        finally:
            self._stop()

    def _start(self, commands: str) -> None:
        self._stop()
        self._variables["TREADLE_ADDRESS"] = "127.0.0.1:0"
        self._server = Running(commands, self._folder, self._variables)
        self._address = self._server.wait_for(r"listening on (\S+)")[1]
        self._variables["TREADLE_ADDRESS"] = self._variables["TREADLE_SERVER"] = self._address
        if "--http-address" in commands:
            self._http_address = self._server.wait_for(r"answers HTTP at https?://(\S+)")[1]

    def _stop(self) -> None:
        if self._server is not None:
            self._server.interrupt()
            self._server.end()
            self._server.close()
            self._server = None

    def _run_shell(self, block: Block) -> None:
        missing = [name for name in PROGRAMS if name in block.text and shutil.which(name) is None]
        if missing:
            return
        running = Running(self._edited(block), self._folder, self._variables)
        try:
            endless = endless_of(block)
            if endless is not None:
                running.wait_for(endless.until)
                running.interrupt()
            code = running.end()
            printed = running.printed()
        finally:
            running.close()
        if endless is None:
            assert code == 0, f"{block.place} ended with {code}:\n{brief(printed)}"
        else:
            assert re.search(endless.then, printed), f"{block.place}:\n{brief(printed)}"
        self._compare(block, printed)

    def _run_python(self, block: Block) -> None:
        # The blank lines before it give a traceback the line numbers of the page.
        code = "\n" * (block.line - 1) + self._edited(block)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.chdir(self._folder):
            exec(compile(code, block.page, "exec"), {"__name__": "__main__"})
        self._compare(block, printed.getvalue())

    def _edited(self, block: Block) -> str:
        return edited(block, self._address, self._http_address)

    def _compare(self, block: Block, printed: str) -> None:
        for line in PRINTS.findall(block.text):
            assert line in printed.splitlines(), f"{block.place} printed:\n{brief(printed)}"


def endless_of(block: Block) -> Endless | None:
    """Returns how a block ends that would not end by itself."""
    entries = [entry for entry in ENDLESS if entry.page == block.page and entry.text in block.text]
    return entries[0] if entries else None
