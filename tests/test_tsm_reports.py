"""Reports through configfs-tsm, from a stand-in for it that a real kernel serves."""

from __future__ import annotations

import errno
import os
import struct
import threading
from contextlib import closing

import pytest
from fake_tsm import Tsm, served
from vectors import needs_vectors, read

from adyton.attestation.dcap.attest import Tdx
from adyton.attestation.sev_snp.attest import SevSnp
from adyton.attestation.tsm import ATTEMPTS, MAX_REPORT, TsmReports
from adyton.errors import ClosedError, LocalProtocolError, PlatformError

pytestmark = pytest.mark.sandbox
DATA = bytes(range(64))


def reports(folder, provider="tdx_guest", pauses=None):
    return TsmReports(provider, folder, (pauses if pauses is not None else []).append)


def test_a_report_is_over_the_data_that_was_given():
    tsm = Tsm("tdx_guest")
    with served(tsm) as folder, reports(folder) as attester:
        assert attester.report(DATA) == (b"report over " + DATA, b"")
        assert attester.report(DATA[::-1]).report == b"report over " + DATA[::-1]
    assert tsm.asked == [DATA, DATA[::-1]]


def test_what_comes_along_with_it_is_read():
    tsm = Tsm("sev_guest", lambda data: (data, b"table"), has_aux=True)
    with served(tsm) as folder, reports(folder, "sev_guest") as attester:
        assert attester.report(DATA) == (DATA, b"table")


def test_nothing_is_left_of_any_report():
    tsm = Tsm("tdx_guest")
    with served(tsm) as folder, reports(folder) as attester:
        for _ in range(3):
            attester.report(DATA)
        assert (tsm.items, tsm.made, tsm.most) == ({}, 4, 1)  # one of them was to see whose they are


def test_nothing_is_left_of_one_that_failed():
    tsm = Tsm("tdx_guest", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "")))
    with served(tsm) as folder, reports(folder) as attester:
        with pytest.raises(PlatformError, match="tdx_guest gave no report: Input/output error"):
            attester.report(DATA)
        assert tsm.items == {}
    assert len(tsm.asked) == 1


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EWOULDBLOCK])
def test_a_busy_platform_is_asked_again_after_longer_and_longer(number):
    def make(data):
        if len(tsm.asked) < 4:
            raise OSError(number, "")
        return b"at last", b""

    tsm, pauses = Tsm("tdx_guest", make), []
    with served(tsm) as folder, reports(folder, pauses=pauses) as attester:
        assert attester.report(DATA).report == b"at last"
    assert len(pauses) == 3
    assert pauses == sorted(set(pauses))


def test_but_not_for_ever():
    def make(_):
        raise OSError(errno.EBUSY, "")

    tsm, pauses = Tsm("tdx_guest", make), []
    with served(tsm) as folder, reports(folder, pauses=pauses) as attester, pytest.raises(PlatformError, match="busy"):
        attester.report(DATA)
    assert len(tsm.asked) == ATTEMPTS == len(pauses) + 1
    assert sum(pauses) < 10


def test_a_report_is_not_taken_when_somebody_else_has_written_there():
    def meddle(item):
        if len(tsm.asked) < 2:
            item.write_generation += 1
            item.inblob = b"another's".ljust(64)

    tsm = Tsm("tdx_guest", before_read=meddle)
    with served(tsm) as folder, reports(folder) as attester:
        assert attester.report(DATA).report == b"report over " + DATA
    assert tsm.asked[:2] == [b"another's".ljust(64)] * 2


def test_a_write_that_did_not_count_is_noticed():
    def full(item):
        if tsm.made < 4:
            item.read_generation = 1  # the kernel's EBUSY, which no close(2) tells

    tsm = Tsm("tdx_guest", before_write=full)
    with served(tsm) as folder, reports(folder) as attester:
        assert attester.report(DATA).report == b"report over " + DATA
    assert tsm.asked == [DATA]


def test_each_of_several_at_once_gets_its_own():
    tsm, found = Tsm("tdx_guest"), {}

    def ask(number):
        with reports(folder) as attester:
            for turn in range(10):
                data = bytes([number, turn]) * 32
                found[data] = attester.report(data).report

    with served(tsm) as folder:
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 40
    assert all(report == b"report over " + data for data, report in found.items())


@pytest.mark.parametrize("size", [0, 32, 63, 65])
def test_report_data_has_64_bytes(size):
    with served(Tsm("tdx_guest")) as folder, reports(folder) as attester, pytest.raises(LocalProtocolError):
        attester.report(bytes(size))


def test_a_report_without_end_is_none():
    tsm = Tsm("tdx_guest", lambda _: (bytes(MAX_REPORT + 1), b""))
    with served(tsm) as folder, reports(folder) as attester, pytest.raises(PlatformError, match="more than"):
        attester.report(DATA)


def test_an_empty_report_is_none():
    tsm = Tsm("tdx_guest", lambda _: (b"", b""))
    with served(tsm) as folder, reports(folder) as attester, pytest.raises(PlatformError, match="empty"):
        attester.report(DATA)


def test_another_platforms_reports_are_refused_at_once():
    with (
        served(Tsm("sev_guest")) as folder,
        pytest.raises(PlatformError, match="those of 'sev_guest', not of tdx_guest"),
    ):
        reports(folder)


@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.ENXIO, "No such device"), (errno.EACCES, "only root may ask"), (errno.EPERM, "only root may ask")],
)
def test_why_none_can_be_asked_for_is_said(number, said):
    with served(Tsm("tdx_guest", refuses_folders=number)) as folder, pytest.raises(PlatformError, match=said):
        reports(folder)


def test_where_there_is_no_such_folder_that_is_said(tmp_path):
    with pytest.raises(PlatformError, match=r"No such file.*mount configfs"):
        reports(str(tmp_path / "report"))


def test_a_closed_one_gives_no_more_reports_and_holds_nothing():
    with served(Tsm("tdx_guest")) as folder:
        before = set(os.listdir("/proc/self/fd"))
        attester = reports(folder)
        attester.report(DATA)
        attester.close()
        attester.close()
        with pytest.raises(ClosedError):
            attester.report(DATA)
        assert set(os.listdir("/proc/self/fd")) <= before


QUOTE_SIZE = 48 + 584  # of a TDX quote of version 4, up to the size of its signature's data


@needs_vectors
def test_a_real_quote_comes_as_the_platform_made_it_without_what_fills_the_kernels_buffer():
    padded = read("sgx-tdx-dcap-qvl/sample/tdx_quote")
    (rest,) = struct.unpack_from("<I", padded, QUOTE_SIZE)
    whole = padded[: QUOTE_SIZE + 4 + rest]
    assert len(whole) < len(padded)
    with served(Tsm("tdx_guest", lambda _: (padded, b""))) as folder, closing(Tdx(folder)) as attester:
        assert attester.report(DATA) == (whole, ())


@needs_vectors
def test_zeros_that_belong_to_a_quote_stay_in_it():
    quote = bytearray(read("sgx-tdx-dcap-qvl/sample/tdx_quote"))
    (rest,) = struct.unpack_from("<I", quote, QUOTE_SIZE)
    struct.pack_into("<I", quote, QUOTE_SIZE, rest + 3)
    with served(Tsm("tdx_guest", lambda _: (bytes(quote), b""))) as folder, closing(Tdx(folder)) as attester:
        assert attester.report(DATA).report == bytes(quote[: QUOTE_SIZE + 4 + rest + 3])


def test_what_is_no_quote_is_not_passed_on():
    with (
        served(Tsm("tdx_guest")) as folder,
        closing(Tdx(folder)) as attester,
        pytest.raises(PlatformError, match="tdx_guest gave what is no quote"),
    ):
        attester.report(DATA)


def test_a_host_without_certificates_or_with_a_broken_table_of_them_gives_a_report_all_the_same():
    for table in (b"", bytes(4096), b"\x01" * 100):
        tsm = Tsm("sev_guest", lambda data, table=table: (data, table), has_aux=True)
        with served(tsm) as folder, closing(SevSnp(folder)) as attester:
            assert attester.report(DATA) == (DATA, ())
