"""The parts of an SGX enclave that need no enclave: the manifest, the attester, the door, what is passed between threads."""

from __future__ import annotations

import datetime as dt
import errno
import hashlib
import os
import re
import socket
import subprocess
import sys
import threading
import tomllib
from collections import deque
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest
from descriptors import held, nothing_more_than
from fake_gramine import KNOWN
from fake_intel import INSTANCE, Intel
from hypothesis import given
from hypothesis import strategies as st

from adyton.attestation import attesters
from adyton.attestation.attesters import look
from adyton.attestation.collateral import read_folder
from adyton.attestation.dcap import gramine
from adyton.attestation.dcap.attest import Sgx
from adyton.attestation.dcap.verify import verify
from adyton.errors import AttestationError, ImageError, LocalProtocolError, PlatformError, RemoteProtocolError
from adyton.handing_over import NAME_SIZE, accept, connect, hand_over
from adyton.runtime.launch import LaunchRequest
from adyton.runtime.process import namespaces
from adyton.runtime.sgx import launcher
from adyton.runtime.sgx.application import lay_out, manifest
from adyton.runtime.sgx.door import Admission, Door
from adyton.runtime.sgx.launcher import Gramine, _control, _order
from adyton.runtime.sgx.order import hear, say
from adyton.runtime.sgx.passing import Passing

IMAGE = "sha256:" + "1" * 64
DATA = bytes(range(64))

# -- the manifest ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runtime(tmp_path_factory) -> Path:
    """What Gramine's C library is, for `lay_out`."""
    folder = tmp_path_factory.mktemp("runtime")
    (folder / "libc.so.6").write_bytes(b"Gramine's own")
    return folder


@pytest.fixture(scope="module")
def laid_out(runtime, tmp_path_factory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("application")
    return folder, lay_out(str(folder), str(runtime))


@pytest.fixture(scope="module")
def read(laid_out) -> dict:
    return tomllib.loads(manifest(laid_out[1], IMAGE))


def test_equal_installations_have_equal_manifests_wherever_they_are(laid_out, runtime, tmp_path):
    again = lay_out(str(tmp_path), str(runtime))
    assert manifest(again, IMAGE) == manifest(laid_out[1], IMAGE)
    assert str(tmp_path) not in manifest(again, IMAGE)


def test_each_file_is_trusted_by_its_hash_and_there_is_no_other(laid_out, read):
    folder, files = laid_out
    trusted = {each["uri"].removeprefix("file:"): each["sha256"] for each in read["sgx"]["trusted_files"]}
    assert trusted == files
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == set(files)
    for path, digest in files.items():
        assert hashlib.sha256((folder / path).read_bytes()).hexdigest() == digest


def test_nothing_can_be_written_by_or_comes_unseen_from_outside(read):
    assert set(read) <= set(KNOWN)
    assert all(set(content) <= KNOWN[table] for table, content in read.items())
    assert "allowed_files" not in read["sgx"]
    assert not re.search("insecure|passthrough|debug__|experimental", str(read))
    assert read["fs"]["root"] == {"type": "tmpfs"}
    folders = {each["path"]: each.get("uri") for each in read["fs"]["mounts"] if each.get("type") != "tmpfs"}
    assert all(uri == f"file:{path[1:]}" for path, uri in folders.items())
    assert {each["path"] for each in read["fs"]["mounts"] if each.get("type") == "tmpfs"} == {"/enclave", "/tmp"}
    assert (read["sgx"]["debug"], read["sgx"]["remote_attestation"]) == (False, "dcap")


def test_every_trusted_file_is_mounted(laid_out, read):
    folders = [each["uri"].removeprefix("file:") for each in read["fs"]["mounts"] if "uri" in each]
    for path in laid_out[1]:
        assert any(path.startswith(folder + "/") for folder in folders), path


def test_it_starts_python_with_nothing_that_another_could_choose(laid_out, read):
    entry = read["libos"]["entrypoint"]
    assert read["loader"]["argv"][0] == entry
    assert {"-I", "-S", "-B"} <= set(read["loader"]["argv"])
    assert entry.lstrip("/") in laid_out[1]
    assert set(read["loader"]["env"]) == {"LANG", "LD_LIBRARY_PATH"}


def test_it_has_gramines_c_library_and_not_the_hosts(laid_out):
    _, files = laid_out
    assert files["lib/libc.so.6"] == hashlib.sha256(b"Gramine's own").hexdigest()
    assert "usr/lib/libc.so.6" not in files


def test_it_has_what_an_enclave_loads_and_no_bytecode_or_packages(laid_out):
    _, files = laid_out
    for name in ("adyton/runtime/sgx/enclave.py", "msgspec/__init__.py", "OpenSSL/SSL.py", "cryptography/__init__.py"):
        assert f"opt/adyton/lib/{name}" in files
    assert not [path for path in files if re.search(r"\.pyc$|__pycache__|/(site|dist)-packages/|/grpc/", path)]


def test_another_file_or_another_image_changes_the_manifest(laid_out):
    files = dict(laid_out[1])
    before = manifest(files, IMAGE)
    assert manifest(files, "sha256:" + "0" * 64) != before
    files["lib/libc.so.6"] = "0" * 64
    assert manifest(files, IMAGE) != before


# -- the attester ---------------------------------------------------------------------------------------------------------


class Files:
    """Gramine's, of one enclave; `quoted`: what a quote is over."""

    def __init__(self, kind: bytes = b"dcap") -> None:
        self.intel = Intel()
        self.files = {"attestation_type": kind}
        self.quoted = lambda: self.files["user_report_data"]

    def read(self, name: str) -> bytes:
        if name == "quote":
            return self.intel.quote(bytes(32), self.quoted())
        if name not in self.files:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return self.files[name]

    def write(self, name: str, data: bytes) -> None:
        assert name == "user_report_data"
        self.files[name] = data


def test_a_quote_is_over_what_was_asked_for():
    files = Files()
    with closing(Sgx(files.read, files.write)) as sgx:
        report = sgx.report(DATA)
    assert DATA in report.report
    assert report.certificates == ()


def test_a_quote_over_something_else_is_an_error():
    files = Files()
    files.quoted = lambda: bytes(64)
    with pytest.raises(PlatformError, match="over something else"):
        Sgx(files.read, files.write).report(DATA)


@pytest.mark.parametrize("size", [0, 63, 65])
def test_report_data_has_64_bytes(size):
    files = Files()
    with pytest.raises(LocalProtocolError):
        Sgx(files.read, files.write).report(bytes(size))


def test_what_is_no_quote_is_an_error():
    files = Files()
    with pytest.raises(PlatformError, match="no quote that can be verified"):
        Sgx(lambda name: b"x" * 500 if name == "quote" else files.read(name), files.write).report(DATA)


def test_without_the_quoting_service_that_is_the_reason():
    files = Files()

    def read(name: str) -> bytes:
        if name == "quote":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return files.read(name)

    with pytest.raises(PlatformError, match="does aesmd run"):
        Sgx(read, files.write).report(DATA)


def test_a_manifest_without_remote_attestation_is_the_reason():
    files = Files(b"none")
    with pytest.raises(PlatformError, match=r"sgx\.remote_attestation is b'none'"):
        Sgx(files.read, files.write)


def test_outside_of_an_enclave_there_is_none():
    with pytest.raises(PlatformError, match="is this an SGX enclave under Gramine"):
        Sgx()


def test_what_intels_service_answers_is_what_a_verifier_reads(tmp_path, monkeypatch):
    """Each document as it comes, beside the certificates and revocation lists."""
    dcap_qvl = pytest.importorskip("dcap_qvl")
    intel, real = Intel(), dcap_qvl.QuoteVerifier
    intel.publish(tmp_path)
    monkeypatch.setattr(dcap_qvl, "QuoteVerifier", lambda given=None: real(given or intel.root))
    quote, at = intel.quote(bytes(range(32)), DATA), dt.datetime(2026, 11, 1, tzinfo=dt.UTC)
    claims = verify(quote, read_folder(str(tmp_path)), at)
    assert (claims.platform, claims.report_data, claims.debug, claims.tcb) == ("sgx", DATA, False, "UpToDate")
    assert claims.runtime == f"sha256:{bytes(range(32)).hex()}"
    assert claims.machine == INSTANCE.hex()
    for at_byte in range(0, 48 + 384, 7):
        changed = bytearray(quote)
        changed[at_byte] ^= 1
        with pytest.raises(AttestationError):
            verify(bytes(changed), read_folder(str(tmp_path)), at)


# -- what a machine must have ---------------------------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Sets what there is of it."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr(gramine, "DEVICE", str(tmp_path / "sgx_enclave"))
    monkeypatch.setattr(gramine, "QUOTING", str(tmp_path / "aesm.socket"))

    def machine(*there: str) -> None:
        for name in there:
            path = programs / name if name in gramine.PROGRAMS else tmp_path / name
            path.touch(mode=0o755)

    return machine


ALL = ("sgx_enclave", "aesm.socket", *gramine.PROGRAMS)


@pytest.mark.parametrize("lacking", ALL)
def test_what_is_missing_is_named(machine, lacking):
    machine(*(each for each in ALL if each != lacking))
    found = look("sgx")
    assert not found.here
    assert lacking in found.detail
    assert [each for each in ALL if re.search(rf"{re.escape(each)}(,| \(|$)", found.detail)] == [lacking]


def test_where_all_is_there_it_says_that_it_has_not_met_hardware(machine):
    machine(*ALL)
    found = look("sgx")
    assert found.here
    assert "has not met hardware" in found.detail
    assert "no sandbox" in found.detail


def test_it_is_never_chosen_by_itself(machine, monkeypatch):
    machine(*ALL)
    monkeypatch.setattr(attesters, "ROWS", {"sgx": attesters.ROWS["sgx"]})
    attesters._automatic.cache_clear()
    assert attesters.chosen("auto") == "sim"
    attesters._automatic.cache_clear()


# -- between threads ------------------------------------------------------------------------------------------------------


def test_packets_and_descriptors_are_passed_in_order():
    one, other = Passing.pair()
    with one, other:
        for number in range(100):
            one.send(b"%d" % number)
        reading, writing = os.pipe()
        socket.send_fds(one, [b"with", b" one"], [writing])
        os.close(writing)
        for number in range(100):
            assert socket.recv_fds(other, 64, 1)[:2] == (b"%d" % number, [])
        message, (passed,), _, _ = socket.recv_fds(other, 64, 1)
        assert message == b"with one"
        os.write(passed, b"through")
        os.close(passed)
        assert os.read(reading, 64) == b"through"
        os.close(reading)


def test_the_end_is_told_behind_what_was_sent():
    one, other = Passing.pair()
    one.send(b"last")
    one.close()
    with other:
        assert socket.recv_fds(other, 64, 1)[0] == b"last"
        assert socket.recv_fds(other, 64, 1)[0] == b""
        with pytest.raises(OSError, match="Broken pipe"):
            other.send(b"nobody")


def test_one_that_does_not_wait_says_so():
    one, other = Passing.pair()
    with one, other:
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            socket.recv_fds(other, 64, 1)
        one.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                one.send(b"x")
        before = len(other._received)
        with pytest.raises(BlockingIOError):
            one.send(b"x")
        assert len(other._received) == before


def test_descriptors_that_nobody_takes_are_closed():
    before = held()
    one, other = Passing.pair()
    reading, writing = os.pipe()
    socket.send_fds(one, [b"a"], [writing])
    socket.send_fds(one, [b"b"], [writing])
    other.recvmsg(64)  # no room for it
    for each in (one, other):
        each.close()
    os.close(writing)
    assert os.read(reading, 1) == b""
    os.close(reading)
    nothing_more_than(before)


def test_several_threads_may_send():
    one, other = Passing.pair()
    with one, other:

        def send(name: int) -> None:
            for number in range(200):
                one.send(b"%d %d" % (name, number))

        threads = [threading.Thread(target=send, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        came = [socket.recv_fds(other, 64, 1)[0].split() for _ in range(800)]
        for thread in threads:
            thread.join()
        for name in range(4):
            assert [int(each[1]) for each in came if int(each[0]) == name] == list(range(200))


# -- the door -------------------------------------------------------------------------------------------------------------

NAMES = [bytes([each]) * NAME_SIZE for each in range(1, 6)]


@given(st.permutations([(kind, number) for number in range(5) for kind in ("told", "began")]), st.integers(1, 40))
def test_a_connection_is_let_in_once_its_name_was_told_whichever_comes_first(steps, cut):
    admission, admitted, told = Admission(), [], b""
    began = set()
    for kind, number in steps:
        if kind == "told":
            told += NAMES[number]
            while len(told) >= cut:
                admitted += admission.told(told[:cut])
                told = told[cut:]
        else:
            began.add(number)
            now, dropped = admission.began(number, NAMES[number])
            assert dropped is None
            admitted += [number] * now
        assert set(admitted) <= began
    admitted += admission.told(told)
    assert sorted(admitted) == list(range(5))


def test_what_has_no_name_that_was_told_is_not_let_in_and_pushed_out_in_the_end():
    admission = Admission()
    dropped = deque()
    for number in range(200):
        now, out = admission.began(number, number.to_bytes(NAME_SIZE, "big"))
        assert not now
        dropped += [] if out is None else [out]
    assert list(dropped) == list(range(len(dropped)))
    assert len(dropped) == 200 - 64
    assert admission.told((199).to_bytes(NAME_SIZE, "big")) == [199]


def test_a_name_lets_in_one():
    admission = Admission()
    admission.told(NAMES[0])
    assert admission.began("first", NAMES[0]) == (True, None)
    assert admission.began("second", NAMES[0]) == (False, None)


@pytest.fixture
def door():
    """The relay's control socket, the supervisor's, and the address of a door between them."""
    with ExitStack() as stack:
        listener = socket.create_server(("127.0.0.1", 0))
        relay = stack.enter_context(socket.create_connection(listener.getsockname()))
        control, _ = listener.accept()
        supervisor, inside = Passing.pair()
        stack.enter_context(supervisor)
        thread = threading.Thread(target=Door(listener, control, inside).run)
        thread.start()
        stack.callback(thread.join, 10)
        stack.callback(relay.close)
        yield relay, supervisor, relay.getpeername()


def test_the_relays_connections_come_to_the_supervisor(door):
    relay, supervisor, _ = door
    for number in range(5):
        with connect(relay) as mine:
            theirs = accept(supervisor)
            with theirs:
                mine.sendall(b"%d there" % number)
                assert theirs.recv(64) == b"%d there" % number
                theirs.sendall(b"and back")
                assert mine.recv(64) == b"and back"


def test_others_on_the_machine_get_no_further(door):
    relay, supervisor, address = door
    with ExitStack() as stack:
        others = [stack.enter_context(socket.create_connection(address, 10)) for _ in range(100)]
        for number, other in enumerate(others):
            with suppress(OSError):  # pushed out
                other.sendall(os.urandom(NAME_SIZE) if number % 2 else b"short")
        mine = stack.enter_context(connect(relay))
        theirs = stack.enter_context(accept(supervisor))
        mine.sendall(b"mine")
        assert theirs.recv(64) == b"mine"
        supervisor.setblocking(False)
        with pytest.raises(BlockingIOError):
            accept(supervisor)


def test_the_end_of_the_control_socket_is_the_enclaves(door):
    relay, supervisor, _ = door
    relay.close()
    assert accept(supervisor) is None


def test_what_was_handed_over_goes_on_when_the_door_is_closed(door):
    relay, supervisor, _ = door
    with connect(relay) as mine, accept(supervisor) as theirs:
        relay.close()
        assert accept(supervisor) is None
        mine.sendall(b"still")
        assert theirs.recv(64) == b"still"


def test_a_connection_is_handed_over_within_the_process():
    one, other = Passing.pair()
    mine, theirs = socket.socketpair()
    with one, other, mine:
        hand_over(one, theirs)
        theirs.close()
        with accept(other) as received:
            mine.sendall(b"x")
            assert received.recv(1) == b"x"


# -- what launcher and enclave say ----------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_messages_come_as_they_were_sent(messages):
    one, other = socket.socketpair()
    with other:
        with one:
            for each in messages:
                say(one, each)
        for each in messages:
            assert hear(other, 200) == each
        assert hear(other, 200) == b""


def test_a_message_that_is_too_long_is_refused_before_it_is_taken():
    one, other = socket.socketpair()
    with one, other:
        say(one, bytes(11))
        with pytest.raises(RemoteProtocolError, match="11 bytes; at most 10"):
            hear(other, 10)


# -- starting ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("digest", ["", "sha256:../../etc/passwd", "x" * 100])
def test_what_is_no_digest_names_no_file(digest, tmp_path):
    with pytest.raises(ImageError, match="is not a digest"):
        _order(LaunchRequest(digest, [], "sgx"), str(tmp_path))


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("exit 3", "did not start"),
        ("echo no port", "did not start"),
        ("echo 1", "did not start"),
    ],
)
def test_a_gramine_that_does_not_start_is_an_error_and_nothing_is_left(program, says, tmp_path):
    (tmp_path / "gramine-sgx").write_text(f"#!/bin/sh\n{program}\n")
    (tmp_path / "gramine-sgx").chmod(0o755)
    before = held()
    process = subprocess.Popen([str(tmp_path / "gramine-sgx")], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with pytest.raises(PlatformError, match=says):
        _control(process)
    process.kill()
    process.wait(10)
    nothing_more_than(before)


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: no user ids to give")
def test_as_root_each_enclave_has_a_user_id_of_its_own(own_temporary_directory, monkeypatch):
    folder = Path(own_temporary_directory)
    folder.chmod(0o777)
    (folder / "gramine-sgx").write_text('#!/bin/sh\nid -u > uid-$$; id -G > groups-$$; echo "$1" > name-$$\n')
    (folder / "gramine-sgx").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.setattr(launcher, "_order", lambda *_: b"")
    monkeypatch.setattr(Gramine, "_sign", lambda *_: "sha256:" + "2" * 64)
    monkeypatch.setattr(Gramine, "_runtime_directory", lambda *_: "")
    monkeypatch.setattr(launcher, "lay_out", lambda *_: {})
    monkeypatch.setattr(gramine, "check", lambda: None)
    started = Gramine(str(folder / "sgx"))
    (folder / "sgx").chmod(0o777)
    for _ in range(2):
        with pytest.raises(PlatformError, match="did not start"):
            started.launch(LaunchRequest(IMAGE, [], "sgx"), "")
    uids, groups, names = (
        [path.read_text().strip() for path in sorted((folder / "sgx").glob(f"{kind}-*"))]
        for kind in ("uid", "groups", "name")
    )
    assert len(set(uids)) == 2
    assert all(int(each) >= namespaces.UID_BASE for each in uids)
    assert groups == uids
    assert names == [f"adyton-{IMAGE[7:]}"] * 2
    assert (folder / "sgx" / "key.pem").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("token", [b"", b"short"])
def test_an_enclave_whose_launcher_is_gone_ends(token):
    code = f"from adyton.runtime.sgx.enclave import main; main({IMAGE!r})"
    done = subprocess.run([sys.executable, "-c", code], input=token, capture_output=True, timeout=100, check=False)
    assert done.returncode == 1
    assert done.stdout.strip().isdigit()
    assert done.stderr == b""


def test_an_enclave_takes_its_order_from_who_shows_the_token_and_says_what_is_wrong_with_it():
    code = f"from adyton.runtime.sgx.enclave import main; main({IMAGE!r})"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(bytes(32))
        process.stdin.close()
        address = "127.0.0.1", int(process.stdout.readline())
        with socket.create_connection(address, 60) as other:
            other.sendall(b"x" * 32)
            assert other.recv(1) == b""
        with socket.create_connection(address, 60) as control:
            control.sendall(bytes(32))
            say(control, b"no order")
            assert bytes(hear(control, 1 << 13)).startswith(b"failed:PlatformError\n")
        assert process.wait(60) == 1
