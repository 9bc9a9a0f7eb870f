"""Tags messages with a key that only this program gets."""

import hashlib
import hmac

from adyton import trusted

enclave = trusted.Enclave("tagger")


@enclave.entry
def tag(message: str, broker: str, key: str) -> str:
    """`key`: of the broker. A real program has it in its image, since who chooses it can give the enclave a secret of his own."""
    secret = trusted.secret("tagging", broker=broker, key=key)
    return hmac.digest(secret, message.encode(), hashlib.sha256).hex()
