"""A client's executor of host calls, called as an enclave calls it."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from adyton.hostcall import abi
from adyton.hostcall.client.executor import Executor
from adyton.hostcall.client.policy import HostCallPolicy
from adyton.hostcall.encoding import restored, whole

DENIED = abi.Failed("EACCES")


class Client:
    """An executor with what it says, and a home: read/ and write/ are allowed, secret/ is not."""

    def __init__(self, home: Path, *, walk: bool | None = None, **lists):
        self.home = home
        self.lines: list[str] = []
        self.printed: list[abi.Output] = []
        lists = lists or {"read": ["read"], "write": ["write"]}
        policy = HostCallPolicy.create(base=str(home), **lists)
        self.executor = Executor(policy, [], denied=self.lines.append, output=self.printed.append, walk=walk)

    def path(self, name: str) -> str:
        return f"{self.home}/{name}".rstrip("/")

    def __call__(self, request):
        result = self.executor.execute(request)
        encoded = whole(result)
        assert restored(msgspec.msgpack.decode(encoded, type=abi.Result), encoded) == result
        return result

    def open(self, name: str, handle: int = 1, access: abi.OpenMode = "read", **options):
        return self(abi.Open(self.path(name), handle, access, **options))

    def stat(self, name: str):
        return self(abi.Stat(self.path(name)))

    def list(self, name: str) -> dict[str, abi.Attributes]:
        cookie, found = 0, {}
        while True:
            entries = self(abi.List(self.path(name), cookie))
            assert isinstance(entries, abi.Entries), entries
            found |= {entry.name: entry.attributes for entry in entries.entries}
            cookie = entries.next
            if not cookie:
                return found


def furnished(place) -> Path:
    home = Path(os.path.realpath(place)) / "home"
    for folder in ("read/sub", "write", "secret"):
        (home / folder).mkdir(parents=True)
    (home / "read/file").write_bytes(b"0123456789")
    (home / "read/sub/deep").write_bytes(b"deep")
    (home / "secret/file").write_bytes(b"secret")
    return home
