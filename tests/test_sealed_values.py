"""`trusted.seal` and `trusted.unseal` in enclaves, in a test's process and in the sandbox."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import ROOT
from sandbox import children, status

import adyton
import adyton.trusted as trusted
from adyton import EnclaveClient, EnclaveLoadConfig, EnclaveManager, EnclaveManagerOptions, FakeEnclaveLoader
from adyton.attestation.sealing.header import decode
from adyton.attestation.sealing.keys import RootKeys, Sealing
from adyton.attestation.sealing.roots import SimulatedRoot
from adyton.crypto.keys import SigningKey
from adyton.errors import AdytonError, ClosedError, EnclaveError
from adyton.image.project import build_project

Build = Callable[..., Path]

PROGRAM = '''
import asyncio, ctypes, hashlib, os, signal, socket, threading
from concurrent.futures import ThreadPoolExecutor
import adyton.trusted as trusted

enclave = trusted.Enclave("keeper")
early = []

@enclave.on_initialize
def initialize(config: trusted.EnclaveConfig) -> None:
    early.append(trusted.seal(b"early"))

@enclave.entry
def keep(data: bytes, to: str, aad: bytes) -> bytes:
    return trusted.seal(data, to=to, aad=aad)

@enclave.entry
def give(sealed: bytes, aad: bytes) -> bytes:
    return trusted.unseal(sealed, aad)

@enclave.entry
async def give_in_a_task(sealed: bytes) -> bytes:
    return trusted.unseal(sealed) + await asyncio.to_thread(trusted.unseal, sealed)

@enclave.entry
def in_threads(count: int, size: int) -> int:
    """How many of the values that so many threads seal and open at once are right."""
    def one(n: int) -> bool:
        data = bytes([n % 256]) * size
        return trusted.unseal(trusted.seal(data, aad=b"%d" % n), b"%d" % n) == data
    with ThreadPoolExecutor(count) as pool:
        return sum(pool.map(one, range(2 * count)))

@enclave.entry
def large(size: int) -> tuple[int, bool]:
    data = os.urandom(1 << 16) * (size >> 16)
    sealed = trusted.seal(data)
    return len(sealed), trusted.unseal(sealed) == data

@enclave.entry
def early_one() -> bytes:
    return trusted.unseal(early[0])

@enclave.entry
def interrupted() -> tuple[int, bytes]:
    """How many values were sealed although a signal's handler, which seals as well, ended others at any line."""
    class Late(Exception): ...
    def late(*_):
        trusted.seal(b"in a handler")
        raise Late
    signal.signal(signal.SIGALRM, late)
    ended, data = 0, os.urandom(1 << 22)
    while ended < 5:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.004)
            while True:
                trusted.seal(data)
        except Late:
            ended += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    return ended, trusted.unseal(trusted.seal(b"after all"))

@enclave.entry
def in_a_child() -> str:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            trusted.seal(b"x")
            os.write(writing, b"sealed")
        except Exception as error:
            os.write(writing, type(error).__name__.encode())
        os._exit(0)
    os.waitpid(child, 0)
    return os.read(reading, 100).decode()

@enclave.entry
def with_a_time_limit_of_sockets() -> bytes:
    socket.setdefaulttimeout(0.000001)
    try:
        return trusted.unseal(trusted.seal(b"x" * 1000000))[:1]
    finally:
        socket.setdefaulttimeout(None)

@enclave.entry
def with_no_message_in_it(kind: str) -> str:
    """What the supervisor does with what no runtime of its own says; over the guest's own control socket."""
    from adyton.runtime.process.guest import sealing
    from adyton.trusted.sealing import connection
    control = connection.made._control
    mine, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    socket.send_fds(control, [b"seal"], [other.fileno()])
    other.close()
    if kind == "silent":
        mine.close()
    elif kind == "large":
        mine.send(bytes(sealing.MAX_PACKET + 1))
        mine.recv(1)
    elif kind == "malformed":
        mine.send(b"what?")
        mine.recv(1)
    return "still here"

@enclave.entry
def many_sockets() -> tuple[int, str]:
    """How many of 300 sockets the supervisor serves at once."""
    from adyton.trusted.sealing import connection
    pairs = []
    for _ in range(300):
        mine, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        socket.send_fds(connection.made._control, [b"seal"], [other.fileno()])
        other.close()
        pairs.append(mine)
    trusted_message = b"\\x93\\xa4Seal\\xabmeasurement\\xc4 " + bytes(32)
    served = 0
    for mine in pairs:
        try:
            mine.send(trusted_message)
            served += bool(mine.recv(100))
        except OSError:
            pass
    try:
        trusted.seal(b"one too many")
        refused = "nothing"
    except Exception as error:
        refused = type(error).__name__
    for mine in pairs:
        mine.close()
    return served, refused

@enclave.entry
def plant() -> None:
    global planted
    planted = bytes(range(200, 232))
'''


@pytest.fixture
def keeper() -> trusted.Enclave:
    enclave = trusted.Enclave("keeper")
    enclave.entry(keep)
    enclave.entry(give)
    return enclave


def keep(data: bytes, to: str, aad: bytes) -> bytes:
    return trusted.seal(data, to=to, aad=aad)  # type: ignore[arg-type]


def give(sealed: bytes, aad: bytes) -> bytes:
    return trusted.unseal(sealed, aad)


@pytest.fixture
def fake(keeper: trusted.Enclave) -> Iterator[EnclaveClient]:
    EnclaveManager.configure(EnclaveManagerOptions(loader=FakeEnclaveLoader(keeper)))
    with EnclaveManager.instance().load_enclave(EnclaveLoadConfig(name="keeper")) as client:
        yield client
    EnclaveManager.configure(EnclaveManagerOptions())


@pytest.mark.parametrize("to", ["measurement", "signer"])
def test_a_fake_enclave_seals_and_opens(fake: EnclaveClient, to: str) -> None:
    for size in (0, 10, 200_000):
        data = os.urandom(size)
        assert fake.call("give", fake.call("keep", data, to, b"aad"), b"aad") == data


def test_a_fake_enclave_raises_what_a_real_one_would(fake: EnclaveClient) -> None:
    sealed = fake.call("keep", b"x", "measurement", b"")
    with pytest.raises(EnclaveError, match="IntegrityError: the sealed data does not open"):
        fake.call("give", sealed[:-1], b"")
    with pytest.raises(EnclaveError, match=r'UsageError.*"measurement" or "signer"'):
        fake.call("keep", b"x", "everybody", b"")


def test_threads_of_a_fake_enclave_seal_at_once(fake: EnclaveClient) -> None:
    def one(n: int) -> bool:
        data = bytes([n]) * 100_000
        return fake.call("give", fake.call("keep", data, "signer", b""), b"") == data

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(40)))


def test_outside_of_an_enclave_nothing_is_sealed() -> None:
    with pytest.raises(ClosedError, match=r"seal\(\) works in an enclave, and this is none"):
        trusted.seal(b"x")
    with pytest.raises(ClosedError, match=r"unseal\(\) works in an enclave"):
        trusted.unseal(b"x")


def test_what_is_no_bytes_is_refused() -> None:
    for wrong in ("text", 3, None):
        for function in (trusted.seal, trusted.unseal):
            with pytest.raises(TypeError):
                function(wrong)  # type: ignore[arg-type, operator]


# -- in the sandbox ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "keeper.py"
    path.write_text(PROGRAM)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Build:
    """Builds and signs an image of the program."""

    def build(name: str, key: SigningKey, product: int = 0, version: int = 0, change: str = "") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "keeper.py").write_text(PROGRAM + change)
        table = f"product_id = {product}\nsecurity_version = {version}\n"
        (folder / "pyproject.toml").write_text(f'[tool.adyton.enclave.keeper]\nentry = "keeper:enclave"\n{table}')
        (built,) = build_project(folder, key=key)
        return Path(built.path)

    return build


@pytest.mark.sandbox
@pytest.mark.usefixtures("on_the_server")
def test_an_enclave_opens_what_another_run_of_it_sealed(program: Path) -> None:
    data = os.urandom(300_000)
    with adyton.load(program) as first:
        sealed = first.call("keep", data, "measurement", b"state")
        assert first.call("early_one") == b"early"
    assert data[:64] not in sealed
    with adyton.load(program) as second:
        assert second.call("give", sealed, b"state") == data
        assert second.call("give_in_a_task", second.call("keep", b"ab", "measurement", b"")) == b"abab"
        with pytest.raises(EnclaveError, match="IntegrityError"):
            second.call("give", sealed, b"")
        with pytest.raises(EnclaveError, match=r"UsageError.*debug key, which everybody has"):
            second.call("keep", b"x", "signer", b"")


@pytest.mark.sandbox
@pytest.mark.usefixtures("on_the_server")
def test_threads_children_and_signals(program: Path) -> None:
    with adyton.load(program) as enclave:
        assert enclave.call("in_threads", 60, 100_000) == 120
        assert enclave.call("in_a_child") == "ClosedError"
        assert enclave.call("with_a_time_limit_of_sockets") == b"x"
        assert enclave.call("interrupted") == [5, b"after all"]
        assert enclave.call("many_sockets") == [256, "ResourceLimitError"]
        assert enclave.call("with_no_message_in_it", "silent") == "still here"
        assert enclave.call("in_threads", 4, 10) == 8


@pytest.mark.sandbox
@pytest.mark.usefixtures("on_the_server")
def test_other_calls_go_on_beside_a_large_value(program: Path) -> None:
    with adyton.load(program) as enclave:
        over = threading.Event()
        result: list[object] = []

        def seal() -> None:
            result.append(enclave.call("large", 1 << 24))
            over.set()

        thread = threading.Thread(target=seal)
        thread.start()
        calls = 0
        while not over.is_set():
            enclave.call("keep", b"small", "measurement", b"")
            calls += 1
        thread.join()
        head_and_tag = len(enclave.call("keep", b"", "measurement", b""))
        assert result == [[(1 << 24) + (1 << 8) * 16 + head_and_tag - 16, True]]
        assert calls > 3


@pytest.mark.sandbox
@pytest.mark.usefixtures("on_the_server")
@pytest.mark.parametrize("kind", ["large", "malformed"])
def test_a_guest_that_says_what_no_runtime_says_is_ended(program: Path, kind: str) -> None:
    with pytest.raises(AdytonError, match="the enclave was ended"), adyton.load(program) as enclave:
        enclave.call("with_no_message_in_it", kind)


@pytest.mark.sandbox
@pytest.mark.usefixtures("on_the_server")
def test_later_versions_of_a_signer_open_and_others_do_not(images: Build) -> None:
    key = SigningKey.generate()
    images_of = {
        "first": images("first", key, 5, 2),
        "later": images("later", key, 5, 3, change="# another version\n"),
        "older": images("older", key, 5, 1),
        "product": images("product", key, 6, 2),
        "signer": images("signer", SigningKey.generate(), 5, 2),
    }
    sealed = {}
    with adyton.load(images_of["first"]) as first:
        for to in ("measurement", "signer"):
            sealed[to] = first.call("keep", b"the state", to, b"")
    with adyton.load(images_of["later"]) as later:
        assert later.call("give", sealed["signer"], b"") == b"the state"
        with pytest.raises(EnclaveError, match="only that image opens it"):
            later.call("give", sealed["measurement"], b"")
        sealed["again"] = later.call("keep", b"the state", "signer", b"")
    with adyton.load(images_of["first"]) as first:
        assert first.call("give", sealed["measurement"], b"") == b"the state"
        with pytest.raises(EnclaveError, match="by security version 3, and this enclave is of version 2"):
            first.call("give", sealed["again"], b"")
    for name, says in (
        ("older", "an older version opens nothing of a later one's"),
        ("product", "to product 5, and this enclave is product 6"),
        ("signer", "only images of that signer"),
    ):
        with adyton.load(images_of[name]) as other, pytest.raises(EnclaveError, match=says):
            other.call("give", sealed["signer"], b"")


@pytest.mark.sandbox
def test_neither_keys_nor_data_are_where_they_should_not_be(program: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if os.geteuid() != 0:
        pytest.skip("NOT ROOT: an enclave's memory cannot be read")
    secret = os.urandom(40)
    with adyton.load(program) as enclave:
        sealed = enclave.call("keep", secret, "measurement", b"")
        assert enclave.call("give", sealed, b"") == secret
        enclave.call("plant")
        (guest,) = [
            pid for pid in children(os.getpid()) if (ids := status(pid)["NSpid"].split())[-1] == "2" and len(ids) > 1
        ]
        header = sealed[: decode(sealed)[1]]
        key = Sealing(enclave.identity, RootKeys(enclave.identity, SimulatedRoot())).key(header, "data")
        found = found_in_memory(guest, planted=bytes(range(200, 232)), key=key, root=SimulatedRoot().key(b""))
    assert found == {"planted"}
    printed = "".join(capfd.readouterr())
    for each in (key.hex(), secret.hex(), repr(secret)):
        assert each not in printed
    assert secret not in sealed
    assert key not in sealed


def found_in_memory(pid: int, **patterns: bytes) -> set[str]:
    """Which of the patterns are anywhere in the memory of the process."""
    found = set()
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            place, rights = line.split()[:2]
            if rights[0] != "r" or line.rstrip().endswith(("[vvar]", "[vsyscall]", "[vvar_vclock]")):
                continue
            start, stop = (int(each, 16) for each in place.split("-"))
            try:
                content = os.pread(memory.fileno(), stop - start, start)
            except OSError:
                continue  # a device's, or beyond the end of a file
            found |= {name for name, pattern in patterns.items() if pattern in content}
    return found


@pytest.mark.sandbox
def test_the_example_of_the_documentation_counts_its_runs(workplace: Path) -> None:
    for block in re.findall(r"```python\n(# (\w+\.py)\n.*?)```", (ROOT / "docs/sealing.md").read_text(), re.DOTALL):
        (workplace / block[1]).write_text(block[0])
    for number in (1, 2, 3):
        run = subprocess.run([sys.executable, "counter.py"], capture_output=True, text=True, check=True)
        assert run.stdout == f"{number}\n"
