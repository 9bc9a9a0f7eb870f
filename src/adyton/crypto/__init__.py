"""The bottom layer's cryptography, all on `cryptography`: digests, sealing of messages, signing keys. Nothing here is a primitive."""
