"""What a transport is given to send."""

from __future__ import annotations


class Said:
    """A source of `data`, and then of nothing until it is `over`."""

    def __init__(self, *data: bytes, over: bool = False) -> None:
        self.data = list(data)
        self.over = over

    @property
    def due(self) -> bool:
        """See Source."""
        return bool(self.data) or self.over

    def pull(self) -> bytes | None:
        """See Source."""
        if self.data:
            return self.data.pop(0)
        return None if self.over else b""
