"""Loads of SGX enclaves, where all but Gramine and the processor is real: from the manifest to the client's verdict. `fake_gramine` is those two."""

from __future__ import annotations

import _heapq as heap
import asyncio
import errno
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dcap_qvl
import pytest
from bad_network import BadNetwork
from fake_gramine import Attestation, install, mrenclave, served
from fake_intel import Intel
from parties import descendants, gone
from sgx_server import ROOT, needs_root, server, start_there

import adyton
from adyton.errors import (
    AdytonError,
    EnclaveError,
    ExpectationError,
    ImageError,
    PlatformError,
)
from adyton.image.oci import Image
from adyton.loader import open_image
from adyton.runtime.sgx.application import lay_out, manifest
from adyton.runtime.sgx.enclave import serve
from adyton.runtime.sgx.order import Order

REAL = dcap_qvl.QuoteVerifier
pytestmark = [pytest.mark.sandbox, needs_root]

PROGRAM = """
import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from zoneinfo import ZoneInfo

import adyton.trusted as trusted

enclave = trusted.Enclave("prog")
kept: list[int] = []

@trusted.host_function
def twice(number: int) -> int: ...

@enclave.entry
def double(number: int) -> int:
    return 2 * number

@enclave.entry
async def later(number: int) -> int:
    await asyncio.sleep(0)
    return number + 1

@enclave.entry
def through(number: int) -> int:
    return twice(number) + 1

@enclave.entry
def count(to: int) -> Iterator[int]:
    yield from range(to)

@enclave.entry
def total(numbers: Iterator[int]) -> int:
    return sum(numbers)

@enclave.entry
def same(data: bytes) -> bytes:
    return data

@enclave.entry
def fail(text: str) -> None:
    raise KeyError(text)

@enclave.entry
def say(text: str) -> None:
    print(text)
    os.write(2, text.encode() + b" too\\n")

@enclave.entry
def end(status: int) -> None:
    os._exit(status)

@enclave.entry
def seal(data: bytes) -> bytes:
    return trusted.seal(data)

@enclave.entry
def seal_to_signer(data: bytes) -> bytes:
    return trusted.seal(data, to="signer")

@enclave.entry
def unseal(data: bytes) -> bytes:
    return trusted.unseal(data)

@enclave.entry
def secret() -> bytes:
    return trusted.secret("name", broker="broker.example:4322", key="sha256:" + "0" * 64)

@enclave.entry
def seen(path: str) -> list[str]:
    return sorted(os.listdir(path))

@enclave.entry
def there(path: str) -> bool:
    return os.path.exists(path)

@enclave.entry
def read(path: str) -> str:
    with open(path) as file:
        return file.read()

@enclave.entry
def own_file(text: str) -> str:
    with open("/tmp/own", "w") as file:
        file.write(text)
    return read("/tmp/own")

@enclave.entry
def write(path: str) -> None:
    with open(path, "w") as file:
        file.write("written")

@enclave.entry
def dial(host: str, port: int) -> None:
    socket.create_connection((host, port), 5)

@enclave.entry
def dial_plainly(port: int) -> None:
    with socket.socket() as sock:
        sock.connect(("127.0.0.1", port))

@enclave.entry
def listen() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))

@enclave.entry
def run() -> None:
    subprocess.run(["/bin/true"])

@enclave.entry
def fork() -> None:
    os.fork()

@enclave.entry
def hour(zone: str) -> int:
    from datetime import datetime
    return datetime(2026, 7, 1, 12, tzinfo=ZoneInfo("UTC")).astimezone(ZoneInfo(zone)).hour

@enclave.entry
def surroundings() -> dict[str, str]:
    return dict(os.environ)
"""


DEPENDS = """# /// script
# dependencies = ["native==1.0", "plain==2.0"]
# ///
import native._heapq
import plain

def smallest(numbers: list[int]) -> int:
    native._heapq.heapify(numbers)
    return numbers[0]

def version() -> str:
    return plain.VERSION

def where() -> str:
    return native._heapq.__file__
"""


@pytest.fixture(scope="module")
def intel() -> Intel:
    return Intel()


@pytest.fixture(scope="module")
def attestation(intel) -> Attestation:
    return Attestation(intel)


@pytest.fixture(scope="module")
def gramine(tmp_path_factory) -> tuple[str, Path]:
    """A PATH with the stand-in's programs, and its C library."""
    programs, runtime = tmp_path_factory.mktemp("programs"), tmp_path_factory.mktemp("runtime")
    return install(programs, runtime), runtime


@pytest.fixture(scope="module")
def measured(gramine, tmp_path_factory) -> Callable[[str], str]:
    """What enclaves of an image are measured as: found out by who has the same versions, without the server."""
    files = lay_out(str(tmp_path_factory.mktemp("reference")), str(gramine[1]))
    return lambda program: f"sha256:{mrenclave(manifest(files, open_image(program).measurement)).hex()}"


@pytest.fixture(scope="module")
def there(attestation, gramine) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server and its URL."""
    with served(attestation) as mount, server(mount, gramine[0]) as started:
        yield started


@pytest.fixture
def run(attestation, gramine, intel, collateral):
    """`adyton ARGUMENTS` on such a machine: exit status and what it printed."""

    def run(*arguments: str) -> tuple[int, str, str]:
        trusted = {ROOT: intel.root.hex(), "ADYTON_COLLATERAL": collateral}
        with served(attestation) as mount, start_there(mount, gramine[0], *arguments, **trusted) as process:
            out, err = process.communicate(timeout=100)
        return process.returncode, out, err

    return run


@pytest.fixture(scope="module", autouse=True)
def collateral(intel, tmp_path_factory) -> str:
    """What a client needs that trusts the stand-in, and no other."""
    folder = tmp_path_factory.mktemp("collateral")
    intel.publish(folder)
    return str(folder)


def trust(patch: pytest.MonkeyPatch, intel: Intel, collateral: str) -> None:
    patch.setattr(dcap_qvl, "QuoteVerifier", lambda given=None: REAL(given or intel.root))
    patch.setenv("ADYTON_COLLATERAL", collateral)


@pytest.fixture(autouse=True)
def _trusts_the_stand_in(intel, collateral, monkeypatch):
    trust(monkeypatch, intel, collateral)


@pytest.fixture
def program(workplace) -> str:
    path = workplace / "prog.py"
    path.write_text(PROGRAM)
    return str(path)


@pytest.fixture
def expected(program, measured) -> dict[str, Any]:
    return {"platforms": ["sgx"], "runtime": [measured(program)], "debug": True}


@pytest.fixture
def load(there, program, expected):
    return lambda **options: adyton.load(program, on=there[1], **{"expect": expected, **options})


@pytest.fixture(scope="module")
def enclave(there, measured, intel, collateral, cache_of_tests, tmp_path_factory) -> Iterator[adyton.EnclaveClient]:
    """One for all tests that leave it as it is."""
    path = tmp_path_factory.mktemp("program") / "prog.py"
    path.write_text(PROGRAM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache_of_tests))
        trust(patch, intel, collateral)
        expected = {"platforms": ["sgx"], "runtime": [measured(str(path))], "debug": True}
        loaded = adyton.load(path, on=there[1], expect=expected)
    with loaded:
        yield loaded


def test_an_enclave_is_called_and_known_by_what_gramine_started(load, expected, attestation):
    with load() as enclave:
        assert enclave.call("double", 21) == 42
        identity = enclave.identity
        assert (identity.platform, identity.runtime) == ("sgx", *expected["runtime"])
        assert identity.vouchers["runtime"] == "hardware"
        assert identity.vouchers["measurement"] == "runtime"
    assert len(set(attestation.asked)) == len(attestation.asked) >= 1


def test_calls_of_each_kind_are_what_they_are_elsewhere(load):
    def twice(number: int) -> int:
        return 2 * number

    with load(functions=[twice], allow_call=["twice"]) as enclave:
        assert enclave.call("later", 1) == 2
        assert enclave.call("through", 20) == 41
        assert list(enclave.call("count", 1000)) == list(range(1000))
        assert enclave.call("total", iter(range(1000))) == sum(range(1000))
        large = os.urandom(1 << 22)
        assert enclave.call("same", large) == large

        async def together() -> list[int]:
            return await asyncio.gather(*(enclave.acall("later", number) for number in range(100)))

        assert asyncio.run(together()) == list(range(1, 101))
        assert [each.result() for each in [enclave.submit("double", each) for each in range(20)]] == list(
            range(0, 40, 2)
        )


def test_an_exception_is_the_callers(enclave):
    with pytest.raises(KeyError) as caught:
        enclave.call("fail", "nothing")
    assert isinstance(caught.value, EnclaveError)
    assert enclave.call("double", 1) == 2


def test_what_it_prints_is_the_clients(enclave, capfd):
    enclave.call("say", "something")
    said = capfd.readouterr()
    assert "something\n" in said.out + said.err
    assert "something too\n" in said.err


def test_what_is_sealed_opens_in_another_start_of_it_and_nowhere_else(load, workplace, expected, measured):
    with load() as enclave:
        sealed = enclave.call("seal", b"kept")
        assert enclave.call("unseal", sealed) == b"kept"
        assert b"kept" not in sealed
    with load() as enclave:
        assert enclave.call("unseal", sealed) == b"kept"
        with pytest.raises(EnclaveError, match="IntegrityError"):
            enclave.call("unseal", sealed[:-1] + bytes([sealed[-1] ^ 1]))
    (workplace / "prog.py").write_text(PROGRAM + "\n")
    changed = {**expected, "runtime": [measured(str(workplace / "prog.py"))]}
    assert changed != expected
    with load(expect=changed) as other, pytest.raises(EnclaveError, match="only that image opens it"):
        other.call("unseal", sealed)


def test_nothing_is_sealed_to_a_signer(enclave):
    with pytest.raises(AdytonError, match="its key is of this very image"):
        enclave.call("seal_to_signer", b"x")


# -- what is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"runtime": ["sha256:" + "0" * 64]}, "runtime"),
        ({"debug": False}, "debug"),
        ({"platforms": ["tdx"]}, "platform"),
        ({"measurement": ["sha256:" + "0" * 64]}, "measurement"),
    ],
)
def test_each_wrong_expectation_is_refused(load, expected, change, field):
    with pytest.raises(ExpectationError, match=field):
        load(expect={**expected, **change})


def test_evidence_of_a_processor_that_is_not_intels_is_refused(load, monkeypatch):
    monkeypatch.setattr(dcap_qvl, "QuoteVerifier", REAL)
    with pytest.raises(AdytonError) as caught:
        load()
    assert caught.value.exit_code in (21, 22)


def test_another_image_is_measured_as_something_else(load, workplace, expected):
    """Its program could say that it is this one, since nothing is between it and the quotes; its MRENCLAVE does not."""
    (workplace / "prog.py").write_text(PROGRAM.replace("2 * number", "3 * number"))
    with pytest.raises(ExpectationError, match="runtime"):
        load()


def test_an_enclave_refuses_another_image_than_the_one_that_it_is_measured_with(program):
    """Whatever the launcher hands over."""
    image = open_image(program)
    assert isinstance(image, Image)
    order = Order(image.oci_manifest, [], [blob.read() for blob in image.blobs.values()], 60.0)
    mine, other = socket.socketpair()
    with mine, other, pytest.raises(ImageError, match="was handed"):
        serve(mine, other, order, "sha256:" + "0" * 64)


def test_a_quote_over_something_else_is_no_evidence(load, attestation, intel, monkeypatch):
    monkeypatch.setattr(
        attestation, "_intel", SimpleNamespace(quote=lambda enclave, _: intel.quote(enclave, bytes(64)))
    )
    with pytest.raises(AdytonError):
        load(timeout=20)


@pytest.mark.parametrize(
    ("entry", "arguments"),
    [
        ("read", ["/etc/hostname-of-the-host"]),
        ("read", ["prog.py"]),
        ("read", ["/home/ann/pay.csv"]),
        ("write", ["/new"]),
        ("seen", ["/home"]),
        ("dial", ["broker.example", 443]),
        ("dial_plainly", [80]),
        ("listen", []),
        ("run", []),
        ("fork", []),
    ],
)
def test_what_there_is_not_is_an_error_that_says_so(enclave, entry, arguments):
    with pytest.raises(OSError, match=r"SGX enclave|No such file"):
        enclave.call(entry, *arguments)
    assert enclave.call("double", 4) == 8


def test_a_file_of_the_client_is_not_there_whatever_the_policy(load):
    with load(allow_read=["/var"]) as enclave:
        with pytest.raises(OSError, match="files of the client are not to be had") as caught:
            enclave.call("read", "/var/file")
        assert caught.value.errno == errno.ENOSYS
        assert not enclave.call("there", "/var")


def test_it_has_files_of_its_own_in_its_memory(enclave):
    assert enclave.call("own_file", "text") == "text"
    assert enclave.call("seen", "/enclave") == ["prog.py"]


def test_it_sees_nothing_of_the_host(enclave):
    environment = enclave.call("surroundings")
    assert set(environment) == {"HOME", "LANG", "PATH", "TMPDIR", "TZ"}
    assert enclave.call("seen", "/usr") == ["lib", "share"]
    assert set(enclave.call("seen", "/dev")) <= {"attestation", "null", "random", "urandom", "zero"}


def test_it_knows_time_zones(enclave):
    assert enclave.call("hour", "Europe/Berlin") == 14


def test_sealed_files_are_refused_at_load(load, workplace):
    (workplace / "sealed").mkdir()
    with pytest.raises(AdytonError, match="sealed files are not to be had"):
        load(sealed=str(workplace / "sealed"))


def test_secrets_of_a_broker_are_refused(enclave):
    with pytest.raises(OSError, match="sockets are not to be had"):
        enclave.call("secret")


# -- life -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def processes(there):
    """The enclaves' processes: those below the server that there are now, and were not before."""
    before = set(descendants(there[0].pid))
    return lambda: {pid for pid, name in descendants(there[0].pid).items() if name == "python3.11"} - before


def test_its_process_is_gone_when_it_is_closed(load, processes):
    with load() as enclave:
        assert enclave.call("double", 1) == 2
        (pid,) = processes()
    assert not gone({pid})


def test_its_process_is_gone_when_its_program_ends_it(load, processes):
    enclave = load()
    (pid,) = processes()
    with pytest.raises(AdytonError, match="enclave"):
        enclave.call("end", 3)
    assert not gone({pid})
    with suppress(AdytonError):
        enclave.close()


def test_an_enclave_that_is_killed_is_the_end_of_its_session(load, processes):
    enclave = load()
    (pid,) = processes()
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(AdytonError, match="enclave"):
        enclave.call("double", 1)
    with suppress(AdytonError):
        enclave.close()


def test_two_enclaves_know_nothing_of_each_other(load):
    with load() as one, load() as other:
        assert one.call("own_file", "one") == "one"
        assert not other.call("there", "/tmp/own")
        assert (one.call("double", 1), other.call("double", 2)) == (2, 4)


def test_a_platform_that_gives_no_quote_is_an_error_with_the_reason(load, attestation):
    attestation.refuses["quote"] = errno.EACCES
    try:
        with pytest.raises(AdytonError):
            load(timeout=20)
    finally:
        attestation.refuses.clear()


def test_a_server_whose_gramine_gives_no_quotes_refuses_loads(load, attestation, monkeypatch):
    monkeypatch.setattr(attestation, "_kind", b"none")
    with pytest.raises(PlatformError, match="Gramine gives no quotes here"):
        load()


@pytest.fixture
def proxy(attestation, gramine) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A proxy server for one enclave, and its port."""
    with served(attestation) as mount, start_there(mount, gramine[0], "proxy", "--listen", "127.0.0.1:0") as process:
        assert process.stdout is not None
        yield process, int(process.stdout.readline().rpartition(":")[2])
        process.kill()


def test_when_the_proxy_server_is_killed_its_enclave_ends_itself(proxy, program, expected):
    process, port = proxy
    enclave = adyton.load(program, on=f"grpc://127.0.0.1:{port}", platform="sgx", expect=expected)
    assert enclave.call("double", 1) == 2
    pids = set(descendants(process.pid))
    process.kill()
    assert not gone(pids)
    with suppress(AdytonError):
        enclave.close()


def test_a_lost_connection_is_made_again_and_attested_again(proxy, attestation, program, expected):
    process, port = proxy
    with closing(BadNetwork(port)) as network:
        url = f"grpc://127.0.0.1:{network.port}"
        with adyton.load(program, on=url, platform="sgx", expect=expected) as enclave:
            assert enclave.call("own_file", "before") == "before"
            asked = len(attestation.asked)
            for _ in range(3):
                assert network.cut()
                assert enclave.call("read", "/tmp/own") == "before"
            assert len(attestation.asked) >= asked + 3
    assert process.wait(30) == 0


def test_an_image_has_its_dependencies_compiled_ones_too(there, measured, wheels, workplace, expected):
    """In the enclave's memory, from which Gramine has them mapped."""
    native = Path(getattr(heap, "__file__", ""))
    if not native.is_file():
        pytest.skip("THIS PYTHON HAS _heapq BUILT IN, SO THERE IS NO COMPILED MODULE TO TAKE")
    files = {"native/__init__.py": b"", f"native/{native.name}": native.read_bytes()}
    wheels.add("native", "1.0", files, tag=f"cp{sys.version_info[0]}{sys.version_info[1]}-none-manylinux_2_17_x86_64")
    wheels.add("plain", "2.0")
    path = workplace / "depends.py"
    path.write_text(DEPENDS)
    with adyton.load(path, on=there[1], expect={**expected, "runtime": [measured(str(path))]}) as enclave:
        assert enclave.call("smallest", [3, 1, 2]) == 1
        assert enclave.call("version") == "2.0"
        assert enclave.call("where") == f"/enclave/site-packages/native/{native.name}"


# -- commands -------------------------------------------------------------------------------------------------------------


def test_a_load_on_this_machine_has_an_enclave_too(run, program, expected, workplace):
    lists = "\n".join(f"{name} = {json.dumps(value)}" for name, value in expected.items())
    (workplace / "policy.toml").write_text(f"[expect]\n{lists}\n")
    status, out, err = run("call", program, "double", "21", "--platform", "sgx", "--policy", "policy.toml")
    assert (status, out) == (0, "42\n"), err


def test_the_doctor_says_that_it_has_not_met_hardware(run):
    _, out, _ = run("doctor", "--json")
    (found,) = [each for each in json.loads(out)["findings"] if each["name"] == "sgx"]
    assert found["ok"]
    assert "has not met hardware" in found["detail"]


def test_a_key_that_gramine_does_not_take_is_said_before_anybody_waits(run, workplace):
    (workplace / "key.pem").write_text("no key")
    status, _, err = run("serve", "--port", "0", "--platform", "sgx", "--sgx-key", "key.pem")
    assert status == 31
    assert "gramine-sgx-sign failed" in err
