"""The provision server's spawner: what it starts, what it cannot, and what its server hears when it is gone."""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
from parties import descendants, party, stop
from sandbox import alive, children, wait_until_ended

from adyton.errors import ImageError, PlatformError, UnreachableError
from adyton.image.build import build_file
from adyton.image.oci import Image
from adyton.provision import spawner as module
from adyton.provision.relay_processes import RelaySettings
from adyton.provision.spawner import Spawn, Spawner
from adyton.provision.store import BlobStore

pytestmark = pytest.mark.sandbox
NOBODY = "sha256:" + "0" * 64


@pytest.fixture
def store(tmp_path):
    """A store that any user can read, with one image; its folder, and what spawn is told of the image."""
    tmp_path.chmod(0o755)
    store = BlobStore(str(tmp_path / "store"))
    (tmp_path / "one.py").write_text("def one() -> int:\n    return 1\n")
    image = Image.open(build_file(str(tmp_path / "one.py")))
    store.add(image.oci_manifest)
    for blob in image.blobs.values():
        store.add(blob.read())
    return store.directory, (image.measurement, [store.add(each.envelope) for each in image.signatures], "sim")


@pytest.fixture
def spawner(store):
    spawner = Spawner(store[0])
    yield spawner
    spawner.close()


@contextlib.contextmanager
def spawning(store, ports):
    with contextlib.closing(Spawner(store[0], RelaySettings(ports=ports))) as spawner:
        yield spawner


def test_a_port_in_use_is_passed_over(store):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        first = taken.getsockname()[1]
        with spawning(store, (first, 65535)) as spawner:
            spawned = spawner.spawn(*store[1])
        assert first < spawned.port
        assert len(spawned.session) == 32


def test_all_ports_of_a_machine_may_be_given(store):
    with spawning(store, (1024, 65535)) as spawner:
        assert spawner.spawn(*store[1]).port >= 1024


def test_no_free_port_is_said_and_leaves_no_enclave(store):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with spawning(store, (port, port)) as spawner:
            with pytest.raises(UnreachableError, match=f"at 127.0.0.1, ports {port} to {port}: are they in use"):
                spawner.spawn(*store[1])
            zygote = party(descendants(spawner._process.pid), "adyton-zygote")
            assert wait_until_ended(children(zygote)) == set()
            taken.close()
            assert spawner.spawn(*store[1]).port == port


def test_what_nobody_wants_any_more_is_ended_whenever_that_is_said():
    """Before it was launched, while it runs, and after its end."""

    class Enclave:
        killed = closed = 0

        def kill(self):
            self.killed += 1

        def close(self):
            self.closed += 1

    for early in (True, False):
        over = []
        order, enclave = module._Order(lambda over=over: over.append(True)), Enclave()
        if early:
            order.abandon()
        order.launched(enclave)
        if not early:
            assert not enclave.killed
            order.abandon()
        order.close()
        order.abandon()
        assert (enclave.killed, enclave.closed, over) == (1, 1, [True])


def test_an_image_that_is_not_there_is_its_own_error(spawner, store):
    with pytest.raises(ImageError, match="is not in the server's store"):
        spawner.spawn(NOBODY, [], "sim")
    assert spawner.spawn(*store[1]).port


def test_draining_waits_for_the_enclaves(spawner, store):
    spawner.drain(0)
    spawner.spawn(*store[1])
    spawner.drain(0.01)
    assert spawner._running
    drained = threading.Thread(target=spawner.drain, args=(60,))
    drained.start()
    relays = [pid for pid in children(spawner._process.pid) if "relay_process" in _command(pid)]
    assert len(relays) == 1
    os.kill(relays[0], signal.SIGKILL)
    drained.join(60)
    assert not spawner._running


def _command(pid):
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return file.read()
    except OSError:
        return ""


def test_a_store_that_enclaves_cannot_read_is_refused_at_the_start(store):
    if os.geteuid() != 0:
        pytest.skip("NOT ROOT: no enclave has a user id of its own")
    os.chmod(f"{store[0]}/blobs", 0o700)
    with pytest.raises(PlatformError, match=r"chmod o\+rx"):
        Spawner(store[0])


def test_a_killed_spawner_takes_all_along_and_its_server_is_told(spawner, store):
    spawner.spawn(*store[1])
    processes = {spawner._process.pid, *children(spawner._process.pid)}
    os.kill(spawner._process.pid, signal.SIGKILL)
    spawner._process.wait()
    spawner.drain(60)
    assert wait_until_ended(processes) == set()
    with pytest.raises(UnreachableError, match="start the server again"):
        spawner.spawn(*store[1])


def test_who_waits_for_a_spawner_that_is_killed_is_told(spawner, store):
    stop(spawner._process.pid)  # so that it reads no more
    with ThreadPoolExecutor(4) as threads:
        waiting = [threads.submit(spawner.spawn, *store[1]) for _ in range(4)]
        os.kill(spawner._process.pid, signal.SIGKILL)
        for each in waiting:
            with pytest.raises(UnreachableError, match="start the server again"):
                each.result(60)


def test_closing_ends_what_hangs(spawner, store, monkeypatch):
    monkeypatch.setattr(module, "END_SECONDS", 0.05)
    spawner.spawn(*store[1])
    processes = {spawner._process.pid, *children(spawner._process.pid)}
    stop(spawner._process.pid)
    spawner.close()
    assert alive({spawner._process.pid}) == set()
    assert wait_until_ended(processes) == set()


def test_a_server_that_is_gone_and_has_not_read_all_is_no_failure(store):
    """The socket of a killed server with unread messages is reset, not just closed."""
    ours, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with other:
        number = str(other.fileno())
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "adyton.provision.spawner", number, store[0], "{}"],
            pass_fds=(other.fileno(),),
        )
    with ours:
        assert ours.recv(module.MESSAGE_SIZE)
        ours.send(msgspec.msgpack.encode(Spawn(1, NOBODY, [], "sim")))
        assert select.select([ours], [], [], 60)[0]  # the refusal, which nobody reads
    assert process.wait(60) == 0
