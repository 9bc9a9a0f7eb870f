"""The confidential program: it counts its visitors. What it keeps between calls is gone with the enclave."""

import threading

from adyton import trusted


class Hello(trusted.TrustedApplication):
    """One instance per enclave; its entries are entered by several threads at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._visitors = 0

    @trusted.entry
    def greet(self, name: str) -> str:
        with self._lock:
            self._visitors += 1
            return f"Hello {name}! You are visitor #{self._visitors} to this enclave."
