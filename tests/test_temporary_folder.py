"""Folders of servers that were started by hand: nothing is left of them, however their process ends."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from command import start
from parties import descendants, gone, litter

from adyton.provision.temporary_folder import TemporaryFolder

pytestmark = pytest.mark.usefixtures("own_temporary_directory")


def left(seconds: float = 60) -> set[str]:
    """What lies in TMPDIR when it is empty, or when that time is over."""
    deadline = time.monotonic() + seconds
    while (found := litter()) and time.monotonic() < deadline:
        threading.Event().wait(0.02)
    return found


@pytest.mark.sandbox
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("command", [("proxy",), ("serve", "--port", "0")], ids=lambda command: command[0])
def test_a_server_that_nobody_has_used_leaves_nothing(command, number):
    server = start(*command)
    assert server.stdout is not None
    with server.stdout:
        assert "listening on" in server.stdout.readline()
        assert litter()
        found = set(descendants(server.pid))
        server.send_signal(number)
        assert server.wait(60) == (0 if number == signal.SIGTERM else -number)
        assert gone(found) == set()
        assert left() == set()


def test_a_folder_is_its_owners_alone_and_gone_when_it_is_closed():
    with TemporaryFolder("some-") as folder:
        assert os.path.basename(folder.path).startswith("some-")
        assert os.stat(folder.path).st_mode & 0o077 == 0
        with open(f"{folder.path}/-rf", "w") as file:
            file.write("x")
        assert folder._remover is not None
    assert litter() == set()
    assert folder._remover.returncode == 0
    folder.close()


def test_without_a_shell_there_is_a_folder_too(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise FileNotFoundError("/bin/sh")

    monkeypatch.setattr("subprocess.Popen", refuse)
    with TemporaryFolder("some-") as folder:
        assert os.path.isdir(folder.path)
    assert litter() == set()
