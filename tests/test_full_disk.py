"""A server whose disk is full, for real: that load fails, nothing of it stays, and a smaller image loads on the same server."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest
from command import adyton as run
from command import start

import adyton
from adyton.errors import ResourceLimitError
from adyton.provision import client as provision_client

pytestmark = pytest.mark.sandbox


@pytest.fixture
def disk():
    """A file system of 2 MiB."""
    if os.geteuid() != 0:
        pytest.skip("NOT ROOT: no small file system can be mounted, so that no disk is filled")
    with tempfile.TemporaryDirectory(prefix="disk") as directory:
        os.chmod(directory, 0o755)
        mount = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=755", "adyton-test", directory]
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"NO MOUNTS HERE: no disk can be filled: {done.stderr.strip()}")
        try:
            yield Path(directory)
        finally:
            subprocess.run(["umount", "--lazy", directory], check=True)


@pytest.fixture
def server(disk):
    process = start("serve", "--port", "0", "--temporary-directory", str(disk / "images"))
    assert process.stdout is not None
    yield "grpc://" + process.stdout.readline().rpartition(" ")[2].strip()
    process.terminate()
    assert process.wait(40) == 0
    process.stdout.close()


def write(name, size):
    """A program of about so many bytes, which do not compress."""
    text = random.Random(size).randbytes(size // 2).hex()
    Path(name).write_text(f"def quick() -> int:\n    return {size}\n# {text}\n")


def stored(disk):
    return {str(path.relative_to(disk)) for path in (disk / "images").rglob("*") if path.is_file()}


def wait_for_an_upload(disk):
    until = time.monotonic() + 30
    while not os.listdir(disk / "images" / "incoming") and time.monotonic() < until:
        threading.Event().wait(0.01)


def fill_up(path):
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_an_image_larger_than_the_disk(workplace, disk, server):
    write("large.py", 8 << 20)
    write("small.py", 1000)
    before = stored(disk)
    done = run("call", "large.py", "quick", "--on", server, "--allow-sim", "--json")
    failure = json.loads(done.stdout)["error"]
    assert (done.returncode, failure["type"]) == (1, "ResourceLimitError")
    assert "has no room for a blob" in failure["message"]
    with pytest.raises(ResourceLimitError) as caught:
        adyton.load("large.py", on=server, allow_sim=True)
    assert (caught.value.code, caught.value.exit_code) == ("RESOURCE_EXHAUSTED", 1)
    assert {name for name in stored(disk) - before if "incoming" in name} == set()
    with adyton.load("small.py", on=server, allow_sim=True) as client:
        assert client.call("quick") == 1000


def test_a_disk_that_others_fill_during_the_upload(workplace, disk, server, monkeypatch):
    write("middle.py", 1 << 20)
    write("small.py", 1000)
    filler = disk / "filler"
    chunks_of = provision_client.chunks_of

    def fill(image, missing):
        for number, chunk in enumerate(chunks_of(image, missing)):
            if number == 2:
                wait_for_an_upload(disk)  # for which there was room
                fill_up(filler)
            yield chunk

    monkeypatch.setattr(provision_client, "chunks_of", fill)
    with pytest.raises(ResourceLimitError) as caught:
        adyton.load("middle.py", on=server, allow_sim=True)
    monkeypatch.setattr(provision_client, "chunks_of", chunks_of)
    assert "the server cannot store the image: No space left on device; its operator must make room" in str(
        caught.value
    )
    assert [name for name in stored(disk) if "incoming" in name] == []
    filler.unlink()
    for name, size in (("small.py", 1000), ("middle.py", 1 << 20)):
        with adyton.load(name, on=server, allow_sim=True) as client:
            assert client.call("quick") == size
