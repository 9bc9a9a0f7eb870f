"""Whom the two accept. It is in both images, so it is measured."""

from __future__ import annotations

from adyton import Expectation, trusted

SERVER, CLIENT = 1, 2  # product ids
SERVICE = "examples.secure_grpc.Translator"


def of_product(product_id: int) -> Expectation:
    """An enclave of that product, by the signer of this one.

    Simulated and signed for debugging by a key that everybody has: an example. A real one names its hardware, what that measures, and a release key.
    """
    signer = trusted.channel.own_identity().signer
    return Expectation(platforms=["sim"], signer=[signer], product_id=product_id, debug=True)
