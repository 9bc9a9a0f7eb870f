"""Vendors' documents for evidence that a client is shown: those of a folder that it was given, else of a store that fetches them."""

from __future__ import annotations

import os

from adyton.attestation.collateral import Collateral, read_folder
from adyton.attestation.collateral_store import CollateralStore
from adyton.attestation.needed import INTEL, needed


def collateral_for(evidence: bytes) -> Collateral:
    """Of hostile evidence. ADYTON_COLLATERAL: a folder, besides which nobody is asked; ADYTON_PCCS_URL: who is asked in place of Intel.

    UsageError: the folder cannot be read. What a vendor does not give is left out.
    """
    folder = os.environ.get("ADYTON_COLLATERAL")
    if folder:
        return read_folder(folder)
    if not needed(evidence):
        return Collateral()
    return store().for_evidence(evidence)


def store() -> CollateralStore:
    """The store of this user."""
    from platformdirs import user_cache_path

    intel = (os.environ.get("ADYTON_PCCS_URL") or INTEL).rstrip("/")
    return CollateralStore(str(user_cache_path("adyton") / "collateral"), intel=intel)
