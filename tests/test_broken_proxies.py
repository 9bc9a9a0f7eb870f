"""Local proxy servers that hang or die at each stage of a load: one error within seconds, and nothing is left."""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path

import pytest
from parties import descendants, gone, litter

import adyton
from adyton.errors import ConnectionLostError, DeadlineError, UnreachableError
from adyton.provision import local_proxy

pytestmark = [pytest.mark.sandbox, pytest.mark.usefixtures("own_temporary_directory")]

PROGRAM = """
import time

def quick() -> int:
    return 1
"""

PROXY = """
import os, socket, sys, threading, time

stage, arguments = sys.argv[1], sys.argv[2:]
path = arguments[-1].removeprefix("unix:")

def die(*_, **__):
    os._exit(9)

if stage in ("says nothing", "no listener", "never answers", "hangs up"):
    if stage != "says nothing":
        listener = socket.socket(socket.AF_UNIX)
        if stage != "no listener":
            listener.bind(path)
            listener.listen()
        print(f"adyton proxy listening on unix:{path}", flush=True)
    if stage == "hangs up":
        listener.accept()
        die()
    os.read(int(os.environ["ADYTON_LAUNCH_FD"]), 1)  # until its client has gone
    sys.exit(0)

if stage == "before it is ready":
    print("no idea what to do", file=sys.stderr)
    die()
from adyton.provision import service, upload
from adyton.remote import relay
if stage == "upload":
    upload.Reception.receive = die
elif stage == "start":
    from adyton.runtime.launch import Zygote
    Zygote.launch = die
elif stage == "join":
    relay.Relays._join = die
elif stage in ("handshake", "initialize"):
    plain = relay.pieces
    def pieces(sock):
        if stage == "initialize":
            def wait():
                while not os.path.exists("initializing"):
                    time.sleep(0.02)
                die()
            threading.Thread(target=wait, daemon=True).start()
        for piece in plain(sock):
            yield piece
            if stage == "handshake":
                die()
    relay.pieces = pieces
from adyton.cli import main
sys.argv = ["adyton", "proxy", *arguments]
main()
"""

INITIALIZES = """
open("initializing", "w").close()
time.sleep(60)
"""
LATE = 40.0  # seconds: what takes one or two on a machine that is not loaded, and 60 where nobody notices

DIES = {
    "before it is ready": (UnreachableError, "ended with status 9. no idea what to do"),
    "no listener": (UnreachableError, "cannot reach"),
    "hangs up": (UnreachableError, "cannot reach"),
    "upload": ((UnreachableError, ConnectionLostError), "was lost"),
    "start": ((UnreachableError, ConnectionLostError), "was lost"),
    "join": ((UnreachableError, ConnectionLostError), ""),
    "handshake": ((UnreachableError, ConnectionLostError), ""),
    "initialize": (ConnectionLostError, "was lost"),
}


def load(stage, program="", **options):
    """What a load with that proxy server raised, and the seconds that it took; nothing may be left."""
    Path("proxy.py").write_text(PROXY)
    Path("program.py").write_text(program or PROGRAM)
    command = shlex.join([sys.executable, os.path.abspath("proxy.py"), stage])
    before = set(descendants(os.getpid()))
    started = time.monotonic()
    with pytest.raises(adyton.AdytonError) as caught:
        adyton.load("program.py", remote_proxy=command, **options)
    seconds = time.monotonic() - started
    assert gone(set(descendants(os.getpid())) - before) == set()
    assert litter() == set()
    return caught.value, seconds


@pytest.mark.parametrize("stage", DIES)
def test_one_that_dies(workplace, stage):
    kind, text = DIES[stage]
    if stage == "initialize":
        error, seconds = load(stage, PROGRAM + INITIALIZES, allow_write=["."])
    else:
        error, seconds = load(stage)
    assert isinstance(error, kind), error
    assert error.exit_code == 10
    assert text in str(error)
    assert seconds < LATE


def test_one_that_accepts_and_never_answers(workplace):
    error, seconds = load("never answers")
    assert isinstance(error, UnreachableError), error
    assert seconds < LATE


def test_one_that_says_nothing(workplace, monkeypatch):
    monkeypatch.setattr(local_proxy, "START_TIMEOUT", 1.0)
    error, seconds = load("says nothing")
    assert isinstance(error, (UnreachableError, DeadlineError)), error
    assert "did not say within 1 s where it listens" in str(error)
    assert seconds < LATE
