"""Faults that remote enclaves are known for, and that no other file shows to be impossible here (docs/coming-from-asylo.md)."""

from __future__ import annotations

import ast
import contextlib
import os
import queue
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from command import ROOT, adyton, start
from sources import Said

import adyton as package
from adyton import (
    EnclaveFinal,
    EnclaveInput,
    EnclaveLoadConfig,
    EnclaveManager,
    EnclaveManagerOptions,
    FakeEnclaveLoader,
    RemoteLoadConfig,
    remote_load_config,
    sgx_load_config,
)
from adyton.errors import ClosedError, ImageError, RemoteProtocolError, UnauthenticatedError, UsageError
from adyton.handing_over import accept, control_pair
from adyton.image.oci import Image
from adyton.provision.relay_messages import Carried, Carry, Finished, Ready, answered, order
from adyton.remote.address import Address
from adyton.remote.connection import open_channel, open_server
from adyton.remote.grpc_transport import GrpcTransport
from adyton.remote.relay import Relays
from adyton.trusted import Enclave, host_function

PROGRAM = """
import os, socket, threading, time

def clocks() -> tuple[int, int]:
    wall, steady = time.time_ns(), time.monotonic_ns()
    time.sleep(0.6)
    return time.time_ns() - wall, time.monotonic_ns() - steady

def clock_of_a_thread() -> int:
    return time.clock_gettime_ns(time.pthread_getcpuclockid(threading.get_ident()))

def contend(path: str) -> int:
    lock, condition, semaphore = threading.Lock(), threading.Condition(), threading.Semaphore(2)
    total = ended = 0

    def work() -> None:
        nonlocal total, ended
        for _ in range(25):
            with semaphore, open(path) as file:
                data = file.read()
            with lock:
                total += len(data)
        with condition:
            ended += 1
            condition.notify_all()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    with condition:
        condition.wait_for(lambda: ended == 8)
    for thread in threads:
        thread.join()
    return total

def messages() -> list[int]:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with near, far:
        found = []
        for room in (100, 3):
            near.send(b"12345")
            data, _, flags, _ = far.recvmsg(room)
            found += [len(data), flags]
        return found

def names() -> list[str]:
    found = []
    for ask in (lambda: socket.if_indextoname(77), lambda: socket.getaddrinfo("no.such.host.invalid", 80)):
        try:
            ask()
        except socket.gaierror:
            found.append("unknown name")
        except OSError:
            found.append("unknown interface")
    return found

def nothing() -> None: ...

def read_by_4096(path: str) -> int:
    with open(path, "rb", buffering=0) as file:
        return sum(len(part) for part in iter(lambda: file.read(4096), b""))

def read_more_than_there_is(path: str) -> int:
    with open(path, "rb", buffering=0) as file:
        return len(file.read(1 << 20))
"""


def threads_of_entries() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "adyton-entry"}


others: set[threading.Thread] = set()  # of tests before
app = Enclave("former")
release, ending = threading.Event(), threading.Event()


class SlowEnd:
    """Kept by an enclave thread for itself: its end takes as long as the test likes."""

    def __del__(self) -> None:
        ending.set()
        release.wait(100)


local = threading.local()


@app.entry
def keep_something() -> None:
    local.kept = SlowEnd()


@app.entry
def nap() -> None:
    release.wait(30)


@app.entry
def add(a: int, b: int) -> int:
    return a + b


@app.entry
def entry_threads() -> int:
    return len(threads_of_entries() - others)


@host_function
def linger() -> None: ...


@app.entry
def stay_outside() -> None:
    linger()


@pytest.fixture
def manager():
    EnclaveManager.configure(EnclaveManagerOptions(loader=FakeEnclaveLoader(app)))
    release.clear()
    ending.clear()
    yield EnclaveManager.instance()
    release.set()
    EnclaveManager.configure(EnclaveManagerOptions())


@pytest.fixture
def real(workplace, on_the_server):
    Path("former.py").write_text(PROGRAM)
    Path("small").write_text("abc\n")
    Path("large").write_bytes(bytes(1 << 20))
    with package.load("former.py", allow_read=["small", "large"]) as client:
        yield client


def test_no_key_and_no_certificate_comes_with_the_sources():
    """A key that everybody has protects nobody, and a certificate that is shipped expires."""
    marks = re.compile(rb"-----BEGIN [A-Z ]*(CERTIFICATE|PRIVATE KEY)-----\s+[A-Za-z0-9+/]{16}")
    for folder in ("bench", "docs", "examples", "fuzz", "src", "tests"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.parent.name != "trust":  # vendors' roots, by which their evidence is judged
                try:
                    content = path.read_bytes()
                except FileNotFoundError:
                    continue  # somebody compiles or builds something there, and has given it its name
                assert not marks.search(content), path


@pytest.mark.sandbox
def test_clocks_go_on_in_the_enclave_without_its_client(real):
    real.call("nothing")
    before = real.stats()["host_calls"]
    wall, steady = real.call("clocks")
    assert steady >= 600_000_000
    assert wall > 0
    assert real.call("clock_of_a_thread") > 0
    assert real.stats()["host_calls"] == before


@pytest.mark.sandbox
def test_threads_of_an_enclave_wait_for_each_other_and_read_files(real):
    assert real.call("contend", "small") == 8 * 25 * 4


@pytest.mark.sandbox
def test_messages_and_names_are_what_the_kernel_says(real):
    trunc = 0x20  # MSG_TRUNC
    assert real.call("messages") == [5, 0, 3, trunc]
    assert real.call("names") == ["unknown interface", "unknown name"]


@pytest.mark.sandbox
def test_a_call_is_one_message_each_way_and_reads_are_put_together(real):
    real.call("nothing")
    before = real.stats()
    for _ in range(100):
        real.call("nothing")
    after = real.stats()
    assert after["round_trips"] == before["round_trips"]
    assert after["bytes_sent"] - before["bytes_sent"] < 100 * 128
    assert real.call("read_by_4096", "large") == 1 << 20
    assert real.stats()["host_calls"]["read"] < 32
    before = real.stats()
    assert real.call("read_more_than_there_is", "small") == 4
    assert real.stats()["bytes_sent"] - before["bytes_sent"] < 4096


def test_a_session_is_joined_by_whom_it_was_made_for_and_on_one_connection():
    secret = b"s" * 32
    near, far = control_pair()
    relay = Relays()
    relay.attach(far.dup(), secret)
    server, port = open_server([relay.handler()], "127.0.0.1:0", None, 4)
    server.start()
    address = Address.parse(f"grpc://127.0.0.1:{port}")

    def join(shown: bytes) -> GrpcTransport:
        return GrpcTransport(lambda: open_channel(address, None), address.target, shown)

    over = threading.Event()
    try:
        for wrong in (b"", b"g" * 32, secret[:-1], secret + b"s"):
            with pytest.raises(UnauthenticatedError):
                list(join(wrong).run(Said(over=True)))
        joined = join(secret)
        got: queue.SimpleQueue[bytes] = queue.SimpleQueue()

        def take(transport: GrpcTransport) -> None:
            with contextlib.suppress(package.AdytonError):  # it is ended below
                for each in transport.run(Said()):
                    got.put(bytes(each))

        threads = [threading.Thread(target=take, args=(joined,))]
        threads[0].start()
        handed = accept(near)
        assert handed is not None
        handed.sendall(b"welcome")
        assert got.get(timeout=60) == b"welcome"
        again = join(secret)
        threads.append(threading.Thread(target=take, args=(again,)))
        threads[1].start()
        other = accept(near)
        assert other is not None
        handed.sendall(b"still here")  # who has the token alone takes nobody's place
        assert got.get(timeout=60) == b"still here"
        handed.close()  # as the enclave does when the other one has shown its session's secret
        threads[0].join(60)
        assert not threads[0].is_alive()
        other.sendall(b"welcome again")
        assert got.get(timeout=60) == b"welcome again"
        over.set()
        for each in (joined, again):
            each.close()
        for sock in (handed, other):
            sock.close()
        for thread in threads:
            thread.join(60)
    finally:
        over.set()
        near.close()
        server.stop(None).wait(60)
        far.close()


def test_a_proxy_server_that_nobody_joins_ends_and_its_enclave_with_it():
    near, far = socket.socketpair()
    ours, others = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    code = (
        "import sys\nfrom adyton.remote import relay\nrelay.JOIN_SECONDS = 0.2\n"
        "from adyton.provision.relay_process import main\nmain(sys.argv[1:])"
    )
    with near, far, ours, others:
        command = [sys.executable, "-c", code, str(others.fileno()), "60", "127.0.0.1", "0", "0"]
        process = subprocess.Popen(command, pass_fds=(others.fileno(),))
        others.close()
        assert isinstance(answered(ours), Ready)
        order(ours, Carry(1, os.getpid(), b"s" * 32, None), far.fileno())
        far.close()
        assert [answered(ours), answered(ours)] == [Carried(1), Finished(1)]
        near.settimeout(30)
        assert near.recv(1) == b""
        ours.close()
        assert process.wait(60) == 0


def test_threads_one_after_another_leave_nothing_behind(manager):
    others.update(threads_of_entries())
    client = manager.load_enclave(EnclaveLoadConfig(name="threads"))
    for number in range(200):
        answers: list[int] = []
        thread = threading.Thread(target=lambda n=number, a=answers: a.append(client.call("add", n, 1)))
        thread.start()
        thread.join()
        assert answers == [number + 1]
    deadline = time.monotonic() + 60
    while client.call("entry_threads") != 1 and time.monotonic() < deadline:
        threading.Event().wait(0.02)  # disposals travel behind the calls that come after them
    assert client.call("entry_threads") == 1
    assert len(client._core.proxy._pairs) == 1
    manager.destroy_enclave(client, EnclaveFinal())


def test_an_enclave_thread_that_ends_slowly_holds_up_nobody(manager):
    client = manager.load_enclave(EnclaveLoadConfig(name="slow"))
    assert client.call("add", 0, 0) == 0  # the first to call has the main thread, which does not end
    thread = threading.Thread(target=lambda: client.call("keep_something"))
    thread.start()
    thread.join()
    assert client.call("add", 0, 0) == 0  # the disposal travels with it
    assert ending.wait(30)
    assert [client.options(timeout=60).call("add", number, 1) for number in range(50)] == list(range(1, 51))
    release.set()
    manager.destroy_enclave(client, EnclaveFinal())


def test_an_enclave_is_destroyed_while_a_thread_of_it_is_outside(manager):
    outside, come_back = threading.Event(), threading.Event()

    def linger() -> None:
        outside.set()
        come_back.wait(30)

    client = manager.load_enclave(EnclaveLoadConfig(name="outside"), allow={"call": ["linger"]}, functions=[linger])
    errors: list[BaseException] = []

    def call() -> None:
        try:
            client.call("stay_outside")
        except ClosedError as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    assert outside.wait(30)
    manager.destroy_enclave(client, EnclaveFinal())
    assert manager.get_client("outside") is None
    come_back.set()
    thread.join(30)
    assert len(errors) == 1


def test_an_output_that_cannot_be_read_is_an_error(manager, monkeypatch):
    client = manager.load_enclave(EnclaveLoadConfig(name="garbled"))
    monkeypatch.setattr(client._core.proxy, "call", lambda *_, **__: b"\xff\xff")
    with pytest.raises(RemoteProtocolError):
        client.enter_and_run(EnclaveInput())
    monkeypatch.undo()
    manager.destroy_enclave(client, EnclaveFinal())


def remote(**source: str) -> EnclaveLoadConfig:
    load_config = EnclaveLoadConfig(name="demo")
    sgx = load_config.Extensions[remote_load_config].sgx_load_config
    if "section" in source:
        sgx.embedded_enclave_config.section_name = source["section"]
    elif "path" in source:
        sgx.file_enclave_config.enclave_path = source["path"]
    return load_config


def with_snapshots() -> EnclaveLoadConfig:
    load_config = remote(path="demo.enclave")
    load_config.Extensions[remote_load_config].sgx_load_config.fork_config.enclave_size = 1 << 20
    return load_config


def without_a_loader() -> EnclaveLoadConfig:
    load_config = EnclaveLoadConfig(name="demo")
    load_config.Extensions[remote_load_config].SetInParent()
    return load_config


@pytest.mark.parametrize(
    ("load_config", "text"),
    [
        (EnclaveLoadConfig(name="demo"), "remote_load_config"),
        (without_a_loader(), "sgx_load_config"),
        (remote(section="x"), "embedded_enclave_config"),
        (with_snapshots(), "fork_config"),
        (remote(path=""), "enclave_path"),
        (remote(path="/nowhere/demo.enclave"), "/nowhere/demo.enclave"),
    ],
    ids=["extension", "loader", "embedded", "fork", "empty", "missing"],
)
def test_a_load_config_that_lacks_something_says_what(load_config, text):
    with pytest.raises(UsageError) as caught:
        EnclaveManager.instance().load_enclave(load_config)
    assert caught.value.code == "INVALID_ARGUMENT"
    assert text in str(caught.value)
    assert EnclaveManager.instance().get_client("demo") is None


def test_a_load_config_holds_no_address_and_is_used_again(manager):
    assert "remote_proxy_config" not in RemoteLoadConfig.DESCRIPTOR.fields_by_name
    assert 1 not in RemoteLoadConfig.DESCRIPTOR.fields_by_number
    load_config = remote(path="demo.enclave")
    before = load_config.SerializeToString()
    for name in ("one", "two", "three"):
        load_config.name = name
        client = manager.load_enclave(load_config)
        assert client.call("add", 1, 2) == 3
        manager.destroy_enclave(client, EnclaveFinal())
    load_config.name = "demo"
    assert load_config.SerializeToString() == before
    assert EnclaveLoadConfig.FromString(before) == load_config
    assert not load_config.HasExtension(sgx_load_config)


@pytest.mark.parametrize("content", [b"", b"\x7fELF" + bytes(100)], ids=["empty", "elf"])
def test_a_file_that_is_no_image_starts_nothing(tmp_path, content):
    path = tmp_path / "demo.enclave"
    path.write_bytes(content)
    with pytest.raises(ImageError):
        Image.open(str(path))
    refused = adyton("call", str(path), "run", "--remote_proxy", "/nowhere/proxy")
    assert (refused.returncode, refused.stdout) == (40, "")


@pytest.mark.sandbox
def test_the_kind_of_security_may_be_written_in_any_case(workplace):
    server = start("serve", "--port", "0", "--security_type", "LOCAL")
    assert server.stdout is not None
    assert server.stdout.readline().startswith("adyton provision server listening on 127.0.0.1:")
    server.terminate()
    assert server.wait(40) == 0
    server.stdout.close()
    refused = adyton("serve", "--port", "0", "--security_type", "SSL")
    assert refused.returncode == 2
    assert "--ssl_cert" in refused.stderr


def test_what_forks_never_imports_grpc():
    """A process with gRPC's threads in it cannot be forked safely; starting another program from it is no fork."""
    forking = set()
    for path in (ROOT / "src" / "adyton").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if name in ("os.fork", "os.forkpty") or (isinstance(node, ast.keyword) and node.arg == "preexec_fn"):
                forking.add(".".join(path.with_suffix("").relative_to(ROOT / "src").parts))
    assert forking == {f"adyton.runtime.process.{name}" for name in ("doctor", "guest_start", "zygote")}
    modules = [*forking, "adyton.provision.spawner", "adyton.runtime.launch", "adyton.runtime.process.guest.run"]
    code = (
        f"import sys, {', '.join(modules)}\nassert not [name for name in sys.modules if name.split('.')[0] == 'grpc']"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
