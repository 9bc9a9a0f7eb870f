"""What is kept outside of enclaves is called after whom it is sealed to: files and folders of containers of sealed files, and of what is remembered of them."""

from __future__ import annotations

from adyton.attestation.sealing.header import To


def owner_name(to: To, measurement: str, signer: str, product_id: int) -> str:
    """A file name. Who can open what is there is not judged by it."""
    name = measurement if to == "measurement" else f"{signer}-{product_id}"
    return name.replace(":", "-")
