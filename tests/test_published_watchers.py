"""Programs that watch files, as published: they hear at once of what other programs on the client do."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
from pathlib import Path
from typing import Self

import pytest
from command import start
from published import project

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(
        platform.machine() != "x86_64", reason="NOT X86-64: projects have wheels for that machine by default"
    ),
    pytest.mark.usefixtures("published_wheels"),
]

WATCHDOG = """
import sys
import threading
from watchdog.events import FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.inotify import InotifyObserver

assert Observer is InotifyObserver


class Handler(FileSystemEventHandler):
    def on_any_event(self, event):
        if event.event_type not in ("opened", "closed_no_write"):
            print(event.event_type, event.src_path, event.dest_path, sep="|", flush=True)


observer = Observer()
observer.schedule(Handler(), sys.argv[1], recursive=True)
observer.start()
print("ready", flush=True)
threading.Event().wait()
"""

WATCHFILES = """
import sys
from watchfiles import watch

print("ready", flush=True)
for changes in watch(sys.argv[1], debounce=50, step=10, yield_on_timeout=True, rust_timeout=1000):
    for change, path in sorted(changes):
        print(change.name, path, flush=True)
    print("turn", flush=True)
"""


class Running:
    """A program in an enclave that tells in lines what it sees of `work`."""

    def __init__(self, folder: Path, image: str, module: str) -> None:
        self.work = folder / "work"
        self.work.mkdir()
        call = ["call", image, "python_m", module, f'["{self.work}"]', "--allow-write", str(self.work)]
        self.process = start(*call, stderr=subprocess.PIPE, process_group=0)
        self.until("ready")

    def until(self, wanted: str) -> list[str]:
        """The lines up to the one that has this in it."""
        said: list[str] = []
        assert self.process.stderr is not None
        for line in self.process.stderr:
            said.append(line.strip())
            if wanted in line:
                return said
        raise AssertionError("\n".join(said))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self.process:
            self.process.send_signal(signal.SIGINT)
            assert self.process.stderr is not None
            self.process.stderr.read()
            assert self.process.wait(60) == 130


def test_watchdog(tmp_path: Path) -> None:
    image = project(tmp_path, {"observing.py": WATCHDOG}, "watchdog")
    with Running(tmp_path, image, "observing") as at_work:
        work = at_work.work
        (work / "file").write_text("text")
        assert f"created|{work}/file|" in at_work.until(f"closed|{work}/file")
        (work / "sub").mkdir()
        at_work.until(f"created|{work}/sub")
        os.rename(work / "file", work / "other")
        at_work.until(f"moved|{work}/file|{work}/other")
        (work / "sub").rmdir()
        (work / "other").unlink()
        at_work.until(f"deleted|{work}/other")


def test_watchfiles(tmp_path: Path) -> None:
    image = project(tmp_path, {"watching.py": WATCHFILES}, "watchfiles")
    with Running(tmp_path, image, "watching") as at_work:
        work = at_work.work
        at_work.until("turn")  # it watches by now
        (work / "file").write_text("text")
        at_work.until(f"added {work}/file")
        (work / "next").write_text("more")
        os.rename(work / "next", work / "file")  # as editors save
        at_work.until(f"{work}/file")
        (work / "file").unlink()
        at_work.until(f"deleted {work}/file")
