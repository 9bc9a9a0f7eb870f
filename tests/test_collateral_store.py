"""What vendors publish is fetched once for all who wait, kept, fetched again when it says so, and never asked for more often than they allow."""

from __future__ import annotations

import datetime as dt
import http.server
import os
import threading
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

import forged
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from vectors import read

from adyton.attestation.collateral_store import Answer, CollateralStore, fetch
from adyton.attestation.needed import AMD, INTEL, needed
from adyton.attestation.verify import verify

CHIP = forged.Amd("Genoa")
REPORT = CHIP.report()
VCEK, CRL = (need.url for need in needed(REPORT)[0])


class Vendor:
    """Answers by address, and counts. `time` passes only when somebody waits, or a test says so."""

    def __init__(self) -> None:
        self.time = forged.AT
        self.asked: list[str] = []
        self.answers: dict[str, Answer] = {
            VCEK: Answer(200, {}, forged.der(CHIP.endorsement())),
            CRL: Answer(200, {}, forged.revocations("SEV-Genoa", CHIP.between)),
        }
        self.gate = threading.Event()
        self.gate.set()

    def fetch(self, url: str) -> Answer:
        self.asked.append(url)
        assert self.gate.wait(30)
        return self.answers.get(url, Answer(404, {}, b""))

    def wait(self, seconds: float) -> None:
        self.time += dt.timedelta(seconds=seconds)

    def store(self, folder: object, **changes: object) -> CollateralStore:
        settings = {"fetch": self.fetch, "now": lambda: self.time, "wait": self.wait}
        return CollateralStore(str(folder), **{**settings, **changes})  # type: ignore[arg-type]


@pytest.fixture
def vendor():
    return Vendor()


def counts(found) -> tuple[int, int]:
    return len(found.certificates), len(found.revocation_lists)


def test_what_was_fetched_is_kept_for_all_that_share_the_folder(vendor, tmp_path):
    assert counts(vendor.store(tmp_path).for_evidence(REPORT)) == (1, 1)
    assert vendor.asked == [VCEK, CRL]
    offline = vendor.store(tmp_path, fetch=None)
    assert counts(offline.for_evidence(REPORT)) == (1, 1)
    assert counts(vendor.store(tmp_path / "other", fetch=None).for_evidence(REPORT)) == (0, 0)
    assert len(vendor.asked) == 2


def test_it_is_fetched_once_for_all_who_wait(vendor, tmp_path):
    vendor.gate.clear()
    store, other = vendor.store(tmp_path), vendor.store(tmp_path)  # as two processes have it
    with ThreadPoolExecutor(16) as threads:
        waiting = [threads.submit(each.for_evidence, REPORT) for each in (store, other) * 8]
        while not vendor.asked:
            assert not any(each.done() for each in waiting)
        vendor.gate.set()
        assert [counts(each.result()) for each in waiting] == [(1, 1)] * 16
    assert vendor.asked == [VCEK, CRL]


def test_it_is_fetched_again_when_something_newer_is_due(vendor, tmp_path):
    store = vendor.store(tmp_path)
    store.for_evidence(REPORT)
    vendor.time += dt.timedelta(days=29)
    store.for_evidence(REPORT)
    assert vendor.asked == [VCEK, CRL]
    vendor.time += dt.timedelta(days=2)
    store.for_evidence(REPORT)
    assert vendor.asked == [VCEK, CRL, CRL]  # a chip's certificate stays what it is


def test_what_is_old_is_given_where_nothing_newer_is_to_be_had(vendor, tmp_path):
    store = vendor.store(tmp_path)
    store.for_evidence(REPORT)
    vendor.time += dt.timedelta(days=40)
    vendor.answers[CRL] = Answer(0, {}, b"")
    assert counts(store.for_evidence(REPORT)) == (1, 1)


def test_a_vendor_is_asked_no_more_often_than_it_allows(vendor, tmp_path):
    began = vendor.time
    vendor.store(tmp_path).for_evidence(REPORT)
    assert vendor.time - began == dt.timedelta(seconds=10)


@pytest.mark.parametrize(
    ("said", "seconds"),
    [("120", 120), ("Sun, 01 Jun 2025 00:02:00 GMT", 120), ("", 60), ("soon", 60), ("999999999", 86_400)],
)
@pytest.mark.parametrize("status", [429, 503])
def test_a_vendor_that_refuses_is_left_alone_for_as_long_as_it_says(vendor, tmp_path, status, said, seconds):
    right = vendor.answers[VCEK]
    vendor.answers[VCEK] = Answer(status, {"retry-after": said}, b"")
    store = vendor.store(tmp_path)
    assert counts(store.for_evidence(REPORT)) == (0, 0)
    vendor.answers[VCEK] = right
    vendor.time += dt.timedelta(seconds=seconds - 16)
    assert counts(store.for_evidence(REPORT)) == (0, 0)
    assert vendor.asked == [VCEK]
    vendor.time += dt.timedelta(seconds=16)
    assert counts(store.for_evidence(REPORT)) == (1, 1)


def test_a_clock_that_was_set_back_keeps_nobody_out(vendor, tmp_path):
    vendor.answers[VCEK] = Answer(429, {}, b"")
    store = vendor.store(tmp_path)
    store.for_evidence(REPORT)
    vendor.time -= dt.timedelta(days=400)
    store.for_evidence(REPORT)
    assert vendor.asked == [VCEK, VCEK]


@pytest.mark.parametrize("spoilt", [b"", b"{}\n", b"not json", b"\xff" * 100])
def test_a_file_that_cannot_be_read_is_fetched_again(vendor, tmp_path, spoilt):
    vendor.store(tmp_path).for_evidence(REPORT)
    for name in os.listdir(tmp_path):
        (tmp_path / name).write_bytes(spoilt)
    assert counts(vendor.store(tmp_path).for_evidence(REPORT)) == (1, 1)
    assert vendor.asked == [VCEK, CRL] * 2


def test_a_file_of_another_document_is_not_taken_for_it(vendor, tmp_path):
    vendor.store(tmp_path).for_evidence(REPORT)
    files = [path for path in tmp_path.iterdir() if not path.suffix]
    one, other = (path.read_bytes() for path in files)
    files[0].write_bytes(other)
    files[1].write_bytes(one)
    assert counts(vendor.store(tmp_path, fetch=None).for_evidence(REPORT)) == (0, 0)


def test_a_folder_that_cannot_be_written_costs_a_request_more(vendor, tmp_path):
    (tmp_path / "file").touch()
    store = vendor.store(tmp_path / "file" / "folder")
    assert counts(store.for_evidence(REPORT)) == counts(store.for_evidence(REPORT)) == (1, 1)
    assert vendor.asked == [VCEK, CRL] * 2


def test_a_report_that_does_not_name_its_product_is_looked_for_under_both(vendor, tmp_path):
    report = CHIP.report(version=2)
    milan, genoa = ([need.url for need in alternative] for alternative in needed(report))
    assert counts(vendor.store(tmp_path).for_evidence(report)) == (1, 1)
    assert vendor.asked == [milan[0], *genoa]


def test_addresses_are_amds():
    turin = forged.Amd("Turin").report(5)
    assert [need.url for alternative in needed(turin) for need in alternative] == [
        f"{AMD}/vcek/v1/Turin/0001020304050607?fmcSPL=01&blSPL=02&teeSPL=03&snpSPL=16&ucodeSPL=80",
        f"{AMD}/vcek/v1/Turin/crl",
    ]
    cloud = CHIP.report(vlek=True)
    assert [need.url for alternative in needed(cloud) for need in alternative] == [
        f"{AMD}/vlek/v1/Genoa/cert_chain",
        f"{AMD}/vlek/v1/Genoa/crl",
    ]


@pytest.mark.parametrize(
    "evidence", [b"", b"{}", forged.Aws().document(), forged.quote(4), REPORT[:-1], CHIP.report(masked=True)]
)
def test_what_needs_nothing_or_cannot_be_read_is_asked_for_nothing(vendor, tmp_path, evidence):
    assert counts(vendor.store(tmp_path).for_evidence(evidence)) == (0, 0)
    assert not vendor.asked


def test_what_comes_over_http_is_read_with_what_came_along(tmp_path):
    pem = CHIP.chain[0].public_bytes(Encoding.PEM).decode()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/crl":
                self.send_response(429)
                self.send_header("Retry-After", "7")
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("SGX-PCK-CRL-Issuer-Chain", urllib.parse.quote(pem))
            self.end_headers()
            self.wfile.write(forged.revocations("ARK-Genoa", CHIP.root))

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            base = f"http://127.0.0.1:{server.server_port}"
            assert fetch(f"{base}/other") == Answer(429, {**fetch(f"{base}/other").headers, "retry-after": "7"}, b"")
            store = CollateralStore(str(tmp_path), lambda _url: fetch(f"{base}/crl"), wait=lambda _seconds: None)
            assert counts(store.for_evidence(REPORT)) == (2, 2)  # the certificate came along, twice
        finally:
            server.shutdown()
            thread.join()
    assert fetch(base).status == 0


def test_intels_documents_come_from_a_pccs_if_there_is_one():
    pytest.importorskip("dcap_qvl")
    try:
        quote = read("sgx-tdx-dcap-qvl/sample/tdx_quote")
    except OSError:
        pytest.skip("NO REAL EVIDENCE HERE: see vectors.py")
    for base in (INTEL, "https://pccs.example:8081"):
        ((tcb, identity, pck, root),) = ([need.url for need in needs] for needs in needed(quote, intel=base))
        assert tcb.startswith(f"{base}/tdx/certification/v4/tcb?fmspc=")
        assert identity == f"{base}/tdx/certification/v4/qe/identity"
        assert pck.startswith(f"{base}/sgx/certification/v4/pckcrl?ca=p")
        assert root.endswith("IntelSGXRootCA.der" if base == INTEL else "/sgx/certification/v4/rootcacrl")


@pytest.mark.parametrize(("version", "platform"), [(3, "sgx"), (4, "tdx"), (5, "tdx")])
def test_a_quote_is_judged_by_what_intels_service_answered(vendor, tmp_path, monkeypatch, version, platform):
    module = pytest.importorskip("adyton.attestation.dcap.verify")
    intel = forged.Intel()
    monkeypatch.setattr(module, "ROOT", forged.der(intel.chain[2]))
    quote = intel.quote(version)
    ((tcb, identity, pck, root),) = ([need.url for need in needs] for needs in needed(quote))
    tcb_info, enclave, root_list, pck_list, signer = intel.answers(platform)
    header = urllib.parse.quote(signer.decode())
    vendor.answers = {
        tcb: Answer(200, {"tcb-info-issuer-chain": header}, tcb_info),
        identity: Answer(200, {"sgx-enclave-identity-issuer-chain": header}, enclave),
        pck: Answer(200, {}, pck_list),
        root: Answer(200, {}, root_list),
    }
    assert verify(quote, vendor.store(tmp_path).for_evidence(quote), forged.AT).tcb == "UpToDate"
    assert verify(quote, vendor.store(tmp_path, fetch=None).for_evidence(quote), forged.AT).tcb == "UpToDate"
