"""Uploads that are cut, or whose blocks come twice or out of order: nothing half there, nobody held, and the next one works."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import adyton
from adyton.crypto.digest import digest_of
from adyton.errors import ImageError, RemoteProtocolError
from adyton.image.build import build_file
from adyton.image.oci import Image
from adyton.provision.store import BlobStore
from adyton.provision.upload import CHUNK, Reception, offer_of
from adyton.provision_pb2 import Chunk

SEED = 7
KILLS = 8
WAITS = 0  # the number of the client that is in the middle, however late it is killed


def program(size):
    """A program with so many bytes that do not compress."""
    return f"def quick() -> int:\n    return 1\n# {random.Random(SEED).randbytes(size // 2).hex()}\n"


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "quick.py"
    path.write_text(program(3000))
    return Image.open(build_file(str(path)))


@pytest.fixture(scope="module")
def above(tmp_path_factory):
    """Where stores are made, and removed."""
    return tmp_path_factory.mktemp("stores")


@contextlib.contextmanager
def new_store(above):
    directory = tempfile.mkdtemp(dir=above)
    try:
        yield BlobStore(directory)
    finally:
        shutil.rmtree(directory)


def cut(image, sizes):
    """All chunks of the image, of these sizes (the last one repeated)."""
    chunks = []
    for digest, blob in image.blobs.items():
        data, offset = blob.read(), 0
        while offset < len(data):
            size = sizes[min(len(chunks), len(sizes) - 1)]
            part = data[offset : offset + size]
            chunks.append(Chunk(digest=digest, offset=offset, data=part, last=offset + len(part) == len(data)))
            offset += len(part)
    return chunks


def only_whole_blobs(store, image):
    """Whether the store has nothing but whole blobs of that image; those."""
    assert os.listdir(os.path.join(store.directory, "incoming")) == []
    found = {"sha256:" + name for name in os.listdir(os.path.join(store.directory, "blobs", "sha256"))}
    for digest in found:
        assert digest_of(store.read(digest)) == digest
    assert found <= {*image.blobs, image.measurement}
    return found


def bring(reception, chunks):
    for chunk in chunks:
        reception.receive(chunk)
    return reception.image()


def upload(store, image, sizes=(CHUNK,)):
    """All that is missing, as a client does it; how many chunks that took."""
    with contextlib.closing(Reception(store, offer_of(image, "sim"))) as reception:
        chunks = [each for each in cut(image, sizes) if each.digest in reception.missing]
        assert bring(reception, chunks).measurement == image.measurement
    return len(chunks)


SIZES = st.lists(st.integers(1, 5000), min_size=1, max_size=20)


@settings(max_examples=60)
@given(sizes=SIZES, where=st.floats(0, 1), again=SIZES)
def test_an_upload_cut_at_any_byte_leaves_whole_blobs_only_and_the_next_one_works(above, image, sizes, where, again):
    total = sum(blob.size for blob in image.blobs.values())
    left = int(where * (total - 1))  # bytes that arrive before the cut
    with new_store(above) as store:
        with contextlib.closing(Reception(store, offer_of(image, "sim"))) as reception:
            for chunk in cut(image, sizes):
                part = chunk.data[:left]
                left -= len(part)
                if part:
                    last = chunk.last and len(part) == len(chunk.data)
                    reception.receive(Chunk(digest=chunk.digest, offset=chunk.offset, data=part, last=last))
            assert not reception.complete
            with pytest.raises(ImageError):
                reception.image()
        assert only_whole_blobs(store, image) < set(image.blobs)
        upload(store, image, again)
        assert only_whole_blobs(store, image) == {*image.blobs, image.measurement}
        assert upload(store, image) == 0


CHANGES = {
    "twice": lambda chunks, at, _: [*chunks[: at + 1], *chunks[at:]],
    "left out": lambda chunks, at, _: [*chunks[:at], *chunks[at + 1 :]],
    "moved": lambda chunks, at, to: [*chunks[:at], *chunks[at + 1 : at + 1 + to], chunks[at], *chunks[at + 1 + to :]],
    "shifted": lambda chunks, at, to: [*chunks[:at], altered(chunks[at], offset=chunks[at].offset + to), *chunks[at + 1 :]],
    "far away": lambda chunks, at, to: [*chunks[:at], altered(chunks[at], offset=(1 << 63) + to), *chunks[at + 1 :]],
    "last too early": lambda chunks, at, _: [*chunks[:at], altered(chunks[at], last=True), *chunks[at + 1 :]],
    "never last": lambda chunks, at, _: [*chunks[:at], altered(chunks[at], last=False), *chunks[at + 1 :]],
    "more": lambda chunks, at, to: [*chunks[:at], altered(chunks[at], data=chunks[at].data + bytes(to)), *chunks[at + 1 :]],
}  # fmt: skip


def altered(chunk, **fields):
    new = Chunk()
    new.CopyFrom(chunk)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


@settings(max_examples=150)
@given(kind=st.sampled_from(list(CHANGES)), sizes=SIZES, where=st.floats(0, 1, exclude_max=True), to=st.integers(1, 9))
def test_blocks_that_come_twice_or_out_of_order_are_refused(above, image, kind, sizes, where, to):
    chunks = cut(image, sizes)
    changed = CHANGES[kind](chunks, int(where * len(chunks)), to)
    with new_store(above) as store:
        with contextlib.closing(Reception(store, offer_of(image, "sim"))) as reception:
            if changed == chunks:  # what was moved was the last one, or the change changed nothing
                return
            with pytest.raises((ImageError, RemoteProtocolError)):
                bring(reception, changed)
        only_whole_blobs(store, image)
        upload(store, image)
        assert only_whole_blobs(store, image) == {*image.blobs, image.measurement}


# -- clients that are killed -------------------------------------------------------------------------------------------

SERVER = """
from adyton.cli import main
from adyton.provision import server
server.THREADS = 3  # if each of the killed clients held one, none would be left
main()
"""

CLIENT = """
import sys
import adyton
from adyton.provision import client, upload

plain = client.chunks_of
upload.CHUNK = 4096  # many chunks

def chunks_of(image, missing):
    for number, chunk in enumerate(plain(image, missing)):
        if number == 2:
            print("under way", flush=True)
            if sys.argv[3] == "waits":
                sys.stdin.read()
        yield chunk

client.chunks_of = chunks_of
adyton.load(sys.argv[1], on=sys.argv[2], allow_sim=True)
print("loaded", flush=True)
sys.stdin.read()
"""


@pytest.mark.sandbox
def test_clients_killed_while_they_upload_hold_nothing_and_the_next_upload_works(workplace, tmp_path):
    directory = tmp_path / "images"
    for each in (tmp_path, *tmp_path.parents[:-1]):
        if "pytest" in str(each):
            each.chmod(0o755)
    draw = random.Random(SEED)
    command = [sys.executable, "-c", SERVER, "serve", "--port", "0", "--temporary-directory", str(directory)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    url = "grpc://" + server.stdout.readline().rpartition(" ")[2].strip()
    Path("small.py").write_text("def quick() -> int:\n    return 1\n")
    with adyton.load("small.py", on=url, allow_sim=True) as client:
        assert client.call("quick") == 1

    def killed(number):
        path = Path(f"large{number}.py").absolute()
        path.write_text(
            f"def quick() -> int:\n    return {number}\n# {random.Random(number).randbytes(4_000_000).hex()}\n"
        )
        command = [sys.executable, "-c", CLIENT, str(path), url, "waits" if number == WAITS else ""]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == "under way\n"
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(delays[number])
            process.kill()
            return "loaded" in process.stdout.read()

    delays = [draw.uniform(0, 0.4) for _ in range(KILLS)]
    with ThreadPoolExecutor(3) as threads:
        loaded = list(threads.map(killed, range(KILLS)))
    until = time.monotonic() + 60
    while (left := os.listdir(directory / "incoming")) and time.monotonic() < until:
        threading.Event().wait(0.05)
    assert left == []
    for name in os.listdir(directory / "blobs" / "sha256"):
        assert digest_of((directory / "blobs" / "sha256" / name).read_bytes()) == "sha256:" + name
    assert not loaded[WAITS]
    with adyton.load(f"large{WAITS}.py", on=url, allow_sim=True) as client:
        assert client.call("quick") == WAITS
    server.terminate()
    assert server.wait(80) == 0
    server.stdout.close()
