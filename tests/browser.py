"""A headless Chromium that tests drive: one page, through the browser's own debugging pipe. Source: Chrome DevTools Protocol."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

_OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--mute-audio"),
    *("--no-proxy-server", "--disable-background-networking", "--disable-component-update", "--disable-extensions"),
    *("--disable-sync", "--disable-default-apps", "--remote-debugging-pipe"),
)
_EXEC = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)
_ANSWERS = 60.0  # seconds that a browser on a busy machine may take for anything


class Page:
    """One page. Every method raises TimeoutError when the browser does not answer."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read = write, read
        self._number = 0
        self._buffer = b""
        self._session: dict[str, str] = {}
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._session = {"sessionId": session}

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters, **self._session}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + _ANSWERS
        while True:
            answer = json.loads(self._message(method, deadline))
            if answer.get("id") == self._number:
                assert "result" in answer, answer
                return answer["result"]

    def _message(self, method: str, deadline: float) -> bytes:
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"the browser did not answer {method} within {_ANSWERS:.0f} s")
            more = os.read(self._read, 1 << 16)
            if not more:
                raise ConnectionError("the browser ended")
            self._buffer += more
        message, _, self._buffer = self._buffer.partition(b"\0")
        return message

    def open(self, url: str) -> None:
        self._ask("Page.navigate", url=url)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise's, when it is kept."""
        answer = self._ask("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_until(self, expression: str) -> None:
        deadline = time.monotonic() + _ANSWERS
        look = f"(() => {{ try {{ return Boolean({expression}) }} catch {{ return false }} }})()"  # not there yet
        while not self.evaluate(f"new Promise((done) => setTimeout(() => done({look}), 50))"):
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"not within {_ANSWERS:.0f} s: {expression}; {self.evaluate('document.body.innerText')[:500]}"
                )

    def picture(self) -> bytes:
        """What is seen, as a PNG."""
        return base64.b64decode(self._ask("Page.captureScreenshot", format="png")["data"])


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A browser with nothing remembered; `folder` has its profile. One that hangs at its start is given up for another, twice."""
    for attempt in (1, 2, 3):
        with (
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch,  # elsewhere: it has sockets there
            _process(folder / f"profile-{attempt}", scratch) as (write, read),
        ):
            try:
                page = Page(write, read)
            except TimeoutError:
                if attempt == 3:
                    raise
                continue
            yield page
            return


@contextmanager
def _process(profile: Path, scratch: str) -> Iterator[tuple[int, int]]:
    """Chromium's pipe: where commands are written, where answers are read. It reads descriptor 3 and writes descriptor 4.

    `scratch`: for what it leaves behind in a folder of temporary files, when it is killed.
    """
    assert CHROMIUM is not None
    commands, write = _pipe()
    read, answers = _pipe()
    command = [sys.executable, "-c", _EXEC, str(commands), str(answers), CHROMIUM, *_OPTIONS]
    process = subprocess.Popen(
        [*command, f"--user-data-dir={profile}", "--window-size=740,640"],
        pass_fds=(commands, answers),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        process_group=0,
        env={**os.environ, "HOME": str(profile), "TMPDIR": scratch},
    )
    os.close(commands)
    os.close(answers)
    try:
        yield write, read
    finally:
        os.killpg(process.pid, 9)
        process.wait()
        os.close(write)
        os.close(read)


def _pipe() -> tuple[int, int]:
    """Both ends, at numbers that are not the browser's own."""
    ends = []
    for each in os.pipe():
        ends.append(fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, 10))
        os.close(each)
    return ends[0], ends[1]
