"""What takes the attested channel's place in a copy of the package that `bench/attestation.py` makes: bytes pass as they are, and nothing is proven.

There is no way to have it in adyton itself.
"""

from __future__ import annotations

from typing import Any

from adyton.channel.events import Data, Established, EvidenceReceived


class _Clear:
    peer_key_digest = b""
    is_worn = False

    def __init__(self) -> None:
        self.established = False
        self._due: list[bytes] = []

    @property
    def due(self) -> bool:
        return bool(self._due)

    def send(self, plaintext: bytes | memoryview) -> None:
        self._due.append(bytes(plaintext))

    def data_to_send(self) -> bytes:
        due, self._due = self._due, []
        return due[0] if len(due) == 1 else b"".join(due)

    def close(self) -> None:
        self.established = False


class ClientChannel(_Clear):
    """It says one byte, and takes one for evidence."""

    def __init__(self, **_: Any) -> None:
        super().__init__()
        self._due.append(b"?")
        self._hears = False

    def receive(self, data: bytes | memoryview) -> list[Any]:
        if self._hears:
            return [Data(bytes(data))]
        self._hears = True
        return [EvidenceReceived(b"none"), *([Data(bytes(data[1:]))] if len(data) > 1 else [])]

    def accept(self) -> None:
        self.established = True

    def report_data(self, _identity_digest: bytes) -> bytes:
        return bytes(64)


class ServerChannel(_Clear):
    """It answers the first byte with another."""

    def __init__(self, _identity_digest: bytes) -> None:
        super().__init__()

    def receive(self, data: bytes | memoryview) -> list[Any]:
        if self.established:
            return [Data(bytes(data))]
        self.established = True
        self._due.append(b"!")
        return [Established(), *([Data(bytes(data[1:]))] if len(data) > 1 else [])]
