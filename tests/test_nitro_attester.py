"""Documents of a Nitro enclave, from a stand-in for its secure module: what the driver of Linux (drivers/misc/nsm.c) does with a message."""

from __future__ import annotations

import ctypes
import errno
import os
import struct

import cbor2
import pytest
from descriptors import held, nothing_more_than
from vectors import needs_vectors, read

from adyton.attestation.nitro.attest import MAX_RESPONSE, NSM_IOCTL_RAW, Nitro
from adyton.errors import ClosedError, LocalProtocolError, PlatformError

DATA = bytes(range(64))


class Module:
    """nsm_dev_ioctl: reads the request from where the caller has it, and writes as much of the response there as there is room for."""

    def __init__(self, answer):
        self.answer, self.requests = answer, []

    def __call__(self, descriptor, command, raw):
        os.fstat(descriptor)
        if command != 0xC0200A00:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        at, size, room, most = struct.unpack("=QQQQ", raw)
        if size > 0x1000:
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        self.requests.append(cbor2.loads(ctypes.string_at(at, size)))
        response = self.answer(self.requests[-1])
        given = response[: min(most, len(response), MAX_RESPONSE)]
        ctypes.memmove(room, given, len(given))
        raw[:] = struct.pack("=QQQQ", at, size, room, len(given))
        return 0


def attester(answer):
    return Nitro(os.devnull, Module(answer))


def documents(document):
    return lambda _request: cbor2.dumps({"Attestation": {"document": document}})


def test_the_number_is_that_of_the_kernels_header():
    assert NSM_IOCTL_RAW == 0xC0200A00


def test_the_report_data_is_the_documents_user_data():
    module = Module(documents(b"document"))
    with Nitro(os.devnull, module) as nitro:
        assert nitro.report(DATA) == (b"document", ())
    assert module.requests == [{"Attestation": {"user_data": DATA, "nonce": None, "public_key": None}}]


@needs_vectors
def test_a_real_document_comes_as_it_is():
    document = read("nitro-evervault/test-data/beta/valid-attestation-doc-bytes")
    with attester(documents(document)) as nitro:
        assert nitro.report(DATA).report == document


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (cbor2.dumps({"Error": "InvalidArgument"}), "InvalidArgument"),
        (cbor2.dumps({"Attestation": {"document": b""}}), "no document"),
        (cbor2.dumps({"Attestation": {"document": "text"}}), "no document"),
        (cbor2.dumps({"Attestation": []}), "no document"),
        (cbor2.dumps("GetRandom"), "no document"),
        (cbor2.dumps({"Attestation": {"document": bytes(MAX_RESPONSE)}}), "cannot be read"),
        (b"", "cannot be read"),
        (b"\xff", "cannot be read"),
    ],
)
def test_what_is_no_document_is_an_error_that_says_so(answer, said):
    with attester(lambda _request: answer) as nitro, pytest.raises(PlatformError, match=said):
        nitro.report(DATA)


def test_a_module_that_does_not_answer_is_an_error():
    def late(_request):
        raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))

    with attester(late) as nitro, pytest.raises(PlatformError, match="timed out"):
        nitro.report(DATA)


def test_where_there_is_no_module_that_is_said(tmp_path):
    with pytest.raises(PlatformError, match="No such file"):
        Nitro(str(tmp_path / "nsm"))


def test_the_real_ioctl_of_what_is_no_module_is_an_error():
    with Nitro(os.devnull) as nitro, pytest.raises(PlatformError, match="did not answer"):
        nitro.report(DATA)


@pytest.mark.parametrize("size", [0, 32, 65])
def test_report_data_has_64_bytes(size):
    with attester(documents(b"document")) as nitro, pytest.raises(LocalProtocolError):
        nitro.report(bytes(size))


def test_a_closed_one_gives_no_more_and_holds_nothing():
    before = held()
    nitro = attester(documents(b"document"))
    nitro.close()
    nitro.close()
    with pytest.raises(ClosedError):
        nitro.report(DATA)
    nothing_more_than(before)
