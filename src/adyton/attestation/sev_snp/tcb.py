"""Which firmware of a chip is good enough, by what AMD's bulletins asked for at a time.

AMD signs no verdict as Intel does: whoever verifies has to know. Only the SNP firmware's version is compared: that of the microcode has another
scale for each stepping of a product. A release of adyton knows the bulletins until its own date; a later one may know more.
"""

from __future__ import annotations

import datetime as dt
from typing import Literal

from adyton.attestation.sev_snp.abi import Product, Tcb

Status = Literal["UpToDate", "OutOfDate"]

# Product; since when; the SNP firmware's least version; by which bulletin.
FLOORS: tuple[tuple[Product, dt.date, int, str], ...] = (
    ("Milan", dt.date(2025, 2, 3), 0x18, "AMD-SB-3019"),
    ("Genoa", dt.date(2025, 2, 3), 0x17, "AMD-SB-3019"),
    ("Genoa", dt.date(2025, 10, 13), 0x1B, "AMD-SB-3020"),
    ("Turin", dt.date(2025, 10, 13), 0x04, "AMD-SB-3020"),
    ("Milan", dt.date(2026, 4, 14), 0x1B, "AMD-SB-3016"),
    ("Genoa", dt.date(2026, 4, 14), 0x1C, "AMD-SB-3034"),
    ("Milan", dt.date(2026, 5, 12), 0x1D, "AMD-SB-3030"),
)


def status(product: Product, tcb: Tcb, at: dt.datetime) -> tuple[Status, tuple[str, ...]]:
    """The state of a chip's firmware at a time, and the bulletins that it does not follow."""
    missed = tuple(
        bulletin for its, since, least, bulletin in FLOORS if its == product and since <= at.date() and tcb.snp < least
    )
    return ("OutOfDate" if missed else "UpToDate"), missed
