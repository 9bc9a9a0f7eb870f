"""A server's store of images: bounded, clean after kills, trusted by nobody's word, and full disks are one client's trouble."""

from __future__ import annotations

import fcntl
import os
import random
import resource
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from command import adyton as run
from command import start

import adyton
from adyton.crypto.digest import digest_of
from adyton.errors import DeadlineError, ResourceLimitError, UnreachableError, UsageError
from adyton.image.build import build_file
from adyton.image.oci import Image
from adyton.provision import service, spawner
from adyton.provision import store as store_module
from adyton.provision.service import ProvisionService
from adyton.provision.store import BlobStore, Incoming
from adyton.provision.upload import Reception, chunks_of, offer_of
from adyton.provision_pb2 import Chunk, ProvisionRequest


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "store"


def blobs(directory):
    return {path.name for path in Path(directory, "blobs", "sha256").iterdir()}


def test_blobs_that_were_not_used_for_longest_go_first(directory):
    store = BlobStore(str(directory), limit=3000)
    digests = [store.add(bytes([number]) * 1000) for number in range(3)]
    for age, digest in enumerate(digests):
        os.utime(store.path(digest), (1000 + age, 1000 + age))
    store.hold([digests[0]]).close()  # used, and let go
    more = store.add(b"x" * 1500)
    assert blobs(directory) == {digests[0][7:], more[7:]}


def test_blobs_in_use_stay_and_what_does_not_fit_is_refused(directory):
    store = BlobStore(str(directory), limit=3000)
    digests = [store.add(bytes([number]) * 1000) for number in range(3)]
    with store.hold(digests), store.hold(digests[:1]):
        with pytest.raises(ResourceLimitError, match="no room"):
            store.add(b"x" * 1000)
        assert blobs(directory) == {each[7:] for each in digests}
    store.add(b"x" * 2500)
    assert len(blobs(directory)) == 1
    with pytest.raises(ResourceLimitError):
        store.make_room(3001)


def test_uploads_at_the_same_time_do_not_outgrow_the_store(directory, monkeypatch):
    """Each alone would fit. What nobody has sent yet takes no room: announcing must not keep others out."""
    monkeypatch.setattr(store_module, "STEP", 100)
    store = BlobStore(str(directory), limit=3000)
    data = [bytes([number]) * 2000 for number in range(2)]
    first, second = (Incoming(store, digest_of(each), 2000) for each in data)

    def write(incoming, number):
        incoming.write(incoming._offset, data[number][incoming._offset : incoming._offset + 100])

    with first:
        with second:
            for _ in range(10):
                write(first, 0)
                write(second, 1)
            write(first, 0)
            with pytest.raises(ResourceLimitError, match="no room"):
                write(second, 1)
        while first._offset < 2000:
            write(first, 0)
        first.finish()
    assert blobs(directory) == {digest_of(data[0])[7:]}


def test_the_number_of_blobs_is_bounded(directory, monkeypatch):
    monkeypatch.setattr(store_module, "MAX_BLOBS", 3)
    store = BlobStore(str(directory))
    held = store.add(b"held")
    with store.hold([held]):
        for number in range(10):
            store.add(bytes([number]))
        assert len(blobs(directory)) == 3
        assert store.has(held)
        with store.hold(["sha256:" + name for name in blobs(directory)]), pytest.raises(ResourceLimitError):
            store.add(b"one more")


@pytest.mark.parametrize("how", ["writable", "owned", "link"])
def test_a_folder_in_which_others_could_exchange_ours_is_refused(directory, tmp_path, how, monkeypatch):
    directory.mkdir()
    if how == "writable":
        directory.chmod(0o777)
    elif how == "owned":
        monkeypatch.setattr(store_module.os, "geteuid", lambda: 12345)
        if os.getuid() == 0:
            os.chown(directory, 54321, -1)
    else:
        (tmp_path / "link").symlink_to(directory)
        directory.chmod(0o777)
        directory = tmp_path / "link"
    with pytest.raises(UsageError, match="give another --temporary_directory"):
        BlobStore(str(directory))
    assert os.listdir(directory) == []
    directory.chmod(0o1777)  # as /tmp is: nobody can rename what is another's
    if how != "owned":
        BlobStore(str(directory))


def test_a_full_disk_drops_what_nobody_uses(directory, monkeypatch):
    store = BlobStore(str(directory))
    old, used = store.add(b"a" * 1000), store.add(b"b" * 1000)
    plain = os.statvfs(directory)
    monkeypatch.setattr(
        os, "statvfs", lambda _: os.statvfs_result((*plain[:1], 1, plain[2], plain[3], 500, *plain[5:]))
    )
    with store.hold([used]):
        store.make_room(1200)
        assert blobs(directory) == {used[7:]}
        with pytest.raises(ResourceLimitError):
            store.make_room(2000)
    assert old != used


def test_leftovers_of_a_killed_server_go_and_uploads_under_way_stay(directory):
    store = BlobStore(str(directory))
    (directory / "incoming" / "left").write_bytes(b"half")
    with Incoming(store, digest_of(b"whole"), 5) as incoming:
        incoming.write(0, b"wh")
        code = "import sys; from adyton.provision.store import BlobStore; BlobStore(sys.argv[1])"
        subprocess.run([sys.executable, "-c", code, str(directory)], check=True)
        assert len(os.listdir(directory / "incoming")) == 1
        incoming.write(2, b"ole")
        incoming.finish()
    assert os.listdir(directory / "incoming") == []
    assert store.has(digest_of(b"whole"))


def squat(path, how):
    path.parent.mkdir(parents=True, exist_ok=True)
    if how == "link":
        (path.parent / "elsewhere").mkdir(mode=0o755)
        path.symlink_to(path.parent / "elsewhere")
    elif how == "file":
        path.write_text("x")
    else:
        path.mkdir()
        path.chmod(0o777)


@pytest.mark.parametrize("how", ["link", "file", "writable"])
@pytest.mark.parametrize("name", ["blobs", "blobs/sha256", "incoming"])
def test_folders_that_others_could_have_laid_there_are_refused(directory, name, how):
    squat(directory / name, how)
    with pytest.raises(UsageError, match="give another --temporary_directory"):
        BlobStore(str(directory))


def test_serve_says_so_and_exits_with_2(directory):
    squat(directory / "incoming", "link")
    done = run("serve", "--port", "0", "--temporary-directory", str(directory))
    assert done.returncode == 2
    assert "incoming" in done.stderr


def test_a_name_in_the_incoming_folder_that_is_a_link_is_left_alone(directory, tmp_path):
    BlobStore(str(directory))
    (tmp_path / "precious").write_text("x")
    (directory / "incoming" / "link").symlink_to(tmp_path / "precious")
    BlobStore(str(directory))
    assert (tmp_path / "precious").read_text() == "x"


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "hello.py"
    path.write_text("def hello(name: str) -> str:\n    return 'Hello ' + name\n")
    return Image.open(build_file(str(path)))


class Context:
    def cancel(self):
        raise AssertionError

    def is_active(self):
        return True


def test_an_upload_that_drips_is_ended(directory, image, monkeypatch):
    monkeypatch.setattr(service, "UPLOAD_PATIENCE", 0.2)
    monkeypatch.setattr(service.Patience, "_watch", lambda _: None)
    monkeypatch.setattr(service, "SLOWEST_UPLOAD", 1 << 30)
    store = BlobStore(str(directory))
    chunks = [each.chunk for each in chunks_of(image, image.blobs)]

    def drip():
        yield ProvisionRequest(offer=offer_of(image, "auto"))
        for chunk in chunks:
            for offset in range(len(chunk.data)):
                part = type(chunk)(digest=chunk.digest, offset=offset, data=chunk.data[offset : offset + 1])
                threading.Event().wait(0.01)
                yield ProvisionRequest(chunk=part)

    provision = ProvisionService(store, lambda _: pytest.fail("started"))
    with pytest.raises(DeadlineError, match="in a second"):
        list(provision.serve(drip(), Context(), "unix:"))
    assert os.listdir(directory / "incoming") == []


def test_who_uploaded_fast_may_not_be_slow_for_long(directory, monkeypatch):
    """An upload holds room in the store and a thread of the server's: a gigabyte sent at once must not buy days of that."""
    now = 1000.0
    monkeypatch.setattr(service, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(service.Patience, "_watch", lambda _: None)
    received = []

    def requests():
        nonlocal now
        for _ in range(1000):
            yield ProvisionRequest(chunk=Chunk(data=b"x" * (1 << 20)))
        while True:
            now += 20
            yield ProvisionRequest(chunk=Chunk(data=b"x"))

    reception = SimpleNamespace(complete=False, receive=received.append)
    provision = ProvisionService(BlobStore(str(directory)), lambda _: pytest.fail("started"))
    with pytest.raises(DeadlineError, match="in a second"):
        provision._receive(reception, requests(), Context())
    assert len(received) == 1002


def test_who_is_steadily_just_fast_enough_is_served(directory, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(service, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(service.Patience, "_watch", lambda _: None)
    reception = SimpleNamespace(complete=False, receive=lambda _: None)

    def requests():
        nonlocal now
        for _ in range(1000):
            now += 15.9
            yield ProvisionRequest(chunk=Chunk(data=b"x" * (1 << 16)))
        reception.complete = True
        yield ProvisionRequest(chunk=Chunk(data=b"x"))

    ProvisionService(BlobStore(str(directory)), lambda _: pytest.fail("started"))._receive(
        reception, requests(), Context()
    )


def test_a_reception_holds_its_blobs_until_its_end(directory, image):
    store = BlobStore(str(directory))
    reception = Reception(store, offer_of(image, "auto"))
    for request in chunks_of(image, reception.missing):
        reception.receive(request.chunk)
    reception.image()
    store._limit = 0
    with pytest.raises(ResourceLimitError):
        store.make_room(1)
    assert all(store.has(each) for each in [image.measurement, *image.blobs])
    reception.close()
    with pytest.raises(ResourceLimitError):
        store.make_room(1)
    assert blobs(directory) == set()


@pytest.mark.sandbox
def test_a_disk_that_fills_fails_that_load_and_no_other(workplace, tmp_path):
    """A limit of file sizes stands for a full disk: it holds for any user."""
    directory = tmp_path / "images"
    for each in (tmp_path, *tmp_path.parents[:-1]):
        if "pytest" in str(each):
            each.chmod(0o755)
    server = start(
        "serve",
        "--port",
        "0",
        "--temporary-directory",
        str(directory),
    )
    assert server.stdout is not None
    url = "grpc://" + server.stdout.readline().rpartition(" ")[2].strip()
    resource.prlimit(
        server.pid, resource.RLIMIT_FSIZE, (200_000, 200_000)
    )  # no code of ours in a fork: gRPC has threads
    Path("large.py").write_text(f"def quick() -> int:\n    return 1\n# {random.Random(1).randbytes(300_000).hex()}\n")
    Path("small.py").write_text("def quick() -> int:\n    return 1\n")
    done = run("call", "large.py", "quick", "--on", url, "--allow-sim")
    assert done.returncode == 1
    assert "the server cannot store the image: File too large" in done.stderr
    with pytest.raises(ResourceLimitError) as caught:
        adyton.load("large.py", on=url, allow_sim=True)
    assert caught.value.code == "RESOURCE_EXHAUSTED"
    assert os.listdir(directory / "incoming") == []
    with adyton.load("small.py", on=url, allow_sim=True) as client:
        assert client.call("quick") == 1
    server.terminate()
    assert server.wait(40) == 0
    server.stdout.close()


@pytest.mark.sandbox
def test_a_server_takes_a_bounded_number_of_enclaves(directory, image, monkeypatch):
    for each in (directory.parent, *directory.parent.parents[:-1]):
        if "pytest" in str(each):
            each.chmod(0o755)
    store = BlobStore(str(directory))
    for blob in [image.oci_manifest, *[each.read() for each in image.blobs.values()]]:
        store.add(blob)
    signatures = [store.add(each.envelope) for each in image.signatures]
    order = (image.measurement, signatures, "sim")
    monkeypatch.setattr(spawner, "MAX_ENCLAVES", 1)
    ended = threading.Event()
    server = spawner.Spawner(str(directory), on_end=ended.set)
    try:
        server.spawn(*order)
        with pytest.raises(ResourceLimitError, match="takes no more"):
            server.spawn(*order)
        monkeypatch.setattr(spawner, "MAX_ENCLAVES", 9)
        with pytest.raises(UnreachableError):  # the client has gone meanwhile: nothing is left of its enclave
            server.spawn(*order, lambda: False)
    finally:
        server.close()
    assert ended.wait(30)


def test_a_lock_shows_that_a_file_is_being_written(directory):
    store = BlobStore(str(directory))
    with Incoming(store, digest_of(b"x"), 1):
        (name,) = os.listdir(directory / "incoming")
        with open(directory / "incoming" / name, "rb") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
