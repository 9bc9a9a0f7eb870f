"""Real evidence, where it is: beside the checkout, or where ADYTON_VECTORS says. Never a part of the project."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("ADYTON_VECTORS") or Path(__file__).parents[2] / "shared" / "vectors")

needs_vectors = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"NO REAL EVIDENCE HERE: {FOLDER} is no folder; set ADYTON_VECTORS"
)


def read(name: str) -> bytes:
    """A file of theirs."""
    return (FOLDER / name).read_bytes()


@dataclass(frozen=True)
class Vector:
    """Real evidence. `signed`: which of its bytes the platform signed; `collateral`: the folder or file for it."""

    name: str
    platform: str
    file: str
    collateral: str | None
    at: dt.datetime
    tcb: str
    runtime: str
    machine: str
    signed: Callable[[bytes], slice]

    @property
    def evidence(self) -> bytes:
        data = read(self.file)
        return bytes.fromhex(data.decode().strip()) if self.file.endswith(".hex") else data


def _utc(*parts: int) -> dt.datetime:
    return dt.datetime(*parts, tzinfo=dt.UTC)  # type: ignore[arg-type]


_DCAP, _SNP, _NITRO = "sgx-tdx-dcap-qvl/sample/", "snp-virtee-sev/tests/certs_data/", "nitro-evervault/test-data/beta/"

VECTORS = (
    Vector(
        *("sgx", "sgx", f"{_DCAP}sgx_quote", f"{_DCAP}sgx_quote_collateral.json", _utc(2025, 6, 20)),
        *(
            "ConfigurationAndSWHardeningNeeded",
            "sha256:33d8736db756ed4997e04ba358d27833188f1932ff7b1d156904d3f560452fbb",
        ),
        *("d04ec06d4e6d92dc90d0ad3cf5ee2ddf", lambda _: slice(0, 48 + 384)),
    ),
    Vector(
        *("tdx", "tdx", f"{_DCAP}tdx_quote", f"{_DCAP}tdx_quote_collateral.json", _utc(2025, 6, 20)),
        *("UpToDate", "sha256:43ae003d2300d42a4eea5ab704b2e4032ea5c8b95fdea0105233c8f315476670"),
        *("07828474603e7019dc930775ffe8cdd2", lambda _: slice(0, 48 + 584)),
    ),
    Vector(
        *("snp-milan", "sev-snp", f"{_SNP}report_milan.hex", f"{_SNP}vcek_milan.der", _utc(2023, 6, 1)),
        *("UpToDate", ""),
        *(
            "d49554ec717f4e5b0fe6b143bcf0405bd7ae304727edf46603f2a76aef6a3abc15d7af38db757039029f0efacfd08e244324884738c72b082e2f87a44d541eb6",
            lambda _: slice(0, 0x2A0),
        ),
    ),
    Vector(
        *("nitro", "nitro", f"{_NITRO}valid-attestation-doc-bytes", None, _utc(2022, 10, 13, 9)),
        *("UpToDate", "", "i-020b6af9246d90e92-enc0183d09086c24190"),
        lambda data: slice(0, len(data) - 98),
    ),
)
