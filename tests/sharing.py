"""An enclave that works in a folder of the client's beside the test, which can change things in the middle of an entry."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import adyton
from adyton.config import Policy


class Sharing:
    """`home` has the program, which may call `tell(text)`: that runs `change`, and gives the text back. Both work in `path`."""

    def __init__(self, home: Path, coherence: str) -> None:
        self.path = home / coherence
        self.path.mkdir()
        policy = Policy.parse(f'[[mount]]\npath = "{self.path}"\ncoherence = "{coherence}"\n', name="test", base="/")
        self.change: Callable[[], object] = lambda: None
        self.enclave = adyton.load(
            str(home / "program.py"),
            policy=policy,
            allow_write=[str(self.path)],
            allow_call=["tell"],
            functions=[self.tell],
        )

    def tell(self, text: str) -> str:
        self.change()
        return text

    def file(self, name: str, text: str) -> str:
        (self.path / name).write_text(text)
        return str(self.path / name)
