"""With what a server's images were signed when they were last loaded: for clients that name an image, and do not have it."""

from __future__ import annotations

import threading

from adyton.errors import NotFoundError

MAX_IMAGES = 64


class KnownSignatures:
    """Signature envelopes by measurement, of the images loaded last. Thread-safe; in memory, so a new server knows none."""

    def __init__(self) -> None:
        self._envelopes: dict[str, list[bytes]] = {}  # in the order of their last load
        self._lock = threading.Lock()

    def remember(self, measurement: str, envelopes: list[bytes]) -> None:
        """Those of an image that has been verified with them."""
        with self._lock:
            self._envelopes.pop(measurement, None)
            self._envelopes[measurement] = envelopes
            if len(self._envelopes) > MAX_IMAGES:
                del self._envelopes[next(iter(self._envelopes))]

    def of(self, measurement: str) -> list[bytes]:
        """NotFoundError: the image is not known."""
        with self._lock:
            found = self._envelopes.get(measurement)
        if found is None:
            raise NotFoundError(f"the server has no image {measurement[:80]}: load it from its file, which uploads it")
        return found
