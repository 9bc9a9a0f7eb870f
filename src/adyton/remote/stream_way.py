"""What streams have of a connection to an enclave."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from adyton.communicator.session import Session


@dataclass(frozen=True)
class StreamWay:
    """`lock` is held around all use of `session`; `wake` is called afterwards, `wake_later` at any moment; `is_open`, under the lock: calls can be made."""

    lock: threading.Lock
    session: Session
    wake: Callable[[], None]
    wake_later: Callable[[], None]
    is_open: Callable[[], bool]
