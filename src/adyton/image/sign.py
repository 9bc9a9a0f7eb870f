"""Signing images, and choosing the signature that counts."""

from __future__ import annotations

import os

from adyton.crypto.keys import SigningKey, debug_key
from adyton.errors import SignatureError, UsageError
from adyton.image.oci import Image
from adyton.image.signature import Signature, make_signature

__all__ = ["Signature", "add_signature", "sign_image", "verified_signature"]


def verified_signature(image: Image, *, accept_debug: bool) -> Signature:
    """The valid signature that counts: one that is not for debugging where there is one, then the first by signer.

    SignatureError: there is none, none holds, or all that hold are for debugging and `accept_debug` is false.
    """
    if not image.signatures:
        raise SignatureError(f"{_name(image)} is not signed: sign it with `adyton sign IMAGE --key K`, or --debug")
    valid = sorted((each for each in image.signatures if each.valid), key=lambda each: (each.debug, each.signer))
    if not valid:
        signers = ", ".join(each.signer for each in image.signatures)
        raise SignatureError(
            f"no signature of {_name(image)} holds (by {signers}): the image or the signature was changed"
        )
    if valid[0].debug and not accept_debug:
        raise SignatureError(
            f"{_name(image)} is signed for debugging only: sign it with `adyton sign IMAGE --key K`, or accept debug where that is safe"
        )
    return valid[0]


def add_signature(image: Image, key: SigningKey) -> Image:
    """The image with a signature by `key`; the measurement stays. UsageError: its sealed files belong to its signer, and that would be everybody."""
    if image.manifest.seals_to == "signer" and key.signer == debug_key().signer:
        raise UsageError(
            f'{_name(image)} has seal = "signer" in its table of pyproject.toml, and the debug key, which everybody has, would sign it: any image could open its sealed files. '
            "Sign it with a key of your own (`adyton keygen`; `sign` in that table, or --key), or leave out `seal`"
        )
    return image.with_signature(make_signature(image.measurement, image.manifest, key))


def sign_image(path: str | os.PathLike[str], key: SigningKey, output: str | os.PathLike[str] | None = None) -> Image:
    """Sign the image in a file and write it to `output`, else over itself; the signed image. ImageError, UsageError."""
    signed = add_signature(Image.open(path), key)
    signed.save(path if output is None else output)
    return signed


def _name(image: Image) -> str:
    return f"the image {image.manifest.name} ({image.measurement})"
