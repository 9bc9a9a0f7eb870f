"""Fuzz target of files on the client: the host calls that an enclave asks for."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from draw import Draw, arrived, packed

from adyton.errors import AdytonError
from adyton.hostcall import abi
from adyton.hostcall.client.executor import Executor, FunctionRaised
from adyton.hostcall.client.policy import HostCallPolicy
from adyton.hostcall.encoding import restored

MAX_ALLOCATED = 1 << 20  # bytes: the disk is not the target


def host_call(data: bytes) -> None:
    """Any requests: under an empty policy, and under one that allows a folder with links out of it."""
    draw = Draw(data)
    with tempfile.TemporaryDirectory(prefix="adyton-fuzz-") as home:
        allowed, secret = f"{home}/allowed", f"{home}/secret"
        for folder in (allowed, secret, f"{allowed}/d"):
            os.mkdir(folder)
        for path in (f"{allowed}/f", f"{secret}/f"):
            with open(path, "wb") as file:
                file.write(b"content")
        os.symlink("../secret", f"{allowed}/out")
        os.symlink("d", f"{allowed}/in")
        os.symlink("loop", f"{allowed}/loop")
        os.mkfifo(f"{allowed}/pipe")
        write = [allowed] if draw.often() else []
        policy = HostCallPolicy.create(base=home, read=[], write=write, net=[], listen=[], env=[], call=["twice"])
        names = (
            "f",
            "d",
            "out",
            "in",
            "loop",
            "pipe",
            "new",
            "out/f",
            "d/g",
            "in/g",
            "../secret/f",
            ".",
            "..",
            "d/../..",
            "é",
            "\0",
            "\U0010ffff",
            "\U0010ffc3\U0010ffa9",
        )
        words = [
            home,
            secret,
            f"{secret}/f",
            "/",
            allowed,
            "twice",
            "/etc/passwd",
            *("f", "../f", "../secret/f", "../../secret", "d"),
            *(f"{allowed}/{name}" for name in names),
        ]
        before = _state(secret)
        with Executor(policy, [_twice], denied=lambda _line: None, output=lambda _output: None) as executor:
            for request in _requests(draw, words):
                try:
                    result = executor.execute(request)
                except FunctionRaised as raised:
                    assert isinstance(raised.error, AdytonError | LookupError)  # noqa: PT017
                    continue
                assert arrived(result, abi.Result) == result
                if not write and not isinstance(request, abi.Call | abi.StopWaiting | abi.SyncAll):
                    for each, one in _parts(request, result):
                        assert isinstance(one, abi.Failed) or leads(each, home), "an empty policy allowed something"
                if isinstance(result, abi.Failed):
                    assert result.errno in abi.ERRNO_NAMES
        assert _state(secret) == before, "a folder that was not allowed was changed"
        for link, target in _links(allowed):
            leads_to = os.path.normpath(os.path.join(os.path.dirname(link), target))
            assert link == f"{allowed}/out" or f"{leads_to}/".startswith(f"{allowed}/"), "a link that leads astray"


def leads(request: Any, home: str) -> bool:
    """Whether it is about the working directory or a folder above it, which may be looked at."""
    match request:
        case abi.Stat(path) | abi.Look(path) | abi.Unwatch(path) | abi.Unfollow(path):
            pass
        case abi.Watch(directory, name) | abi.Follow(directory, name) if name:
            path = f"{directory.rstrip('/')}/{name}"
        case _:
            return False
    return (home + "/").startswith(path.rstrip("/") + "/")


def _parts(request: Any, result: Any) -> Iterator[tuple[Any, Any]]:
    """Requests and their results, those in a compound one by one."""
    if isinstance(request, abi.Compound) and isinstance(result, abi.Results):
        for each, raw in zip(request.requests, result.results, strict=False):
            yield each, restored(msgspec.msgpack.decode(raw, type=abi.Result), bytes(raw))
    else:
        yield request, result


def _twice(number: int) -> int:
    return number * 2


def _requests(draw: Draw, words: Sequence[str]) -> Iterator[Any]:
    named = Draw(draw.rest(), words)
    while named:
        drawn = named.spoilt(packed(named.struct(abi.Request))) if named.below(16) else named.blob()
        with contextlib.suppress(msgspec.MsgspecError, ValueError):
            request = restored(msgspec.msgpack.decode(drawn, type=abi.Request), drawn)
            if isinstance(request, abi.Lock | abi.Flock):
                request = msgspec.structs.replace(request, wait=None)  # nobody would end the wait
            if isinstance(request, abi.Compound):
                kept = [each for each in request.requests if not isinstance(each, abi.Lock | abi.Flock)]
                request = abi.Compound(kept or [abi.Look("/")], request.through)
            if not (isinstance(request, abi.Allocate) and request.size > MAX_ALLOCATED):
                yield request


def _links(folder: str) -> Iterator[tuple[str, str]]:
    for above, directories, files in os.walk(folder):
        for name in directories + files:
            if os.path.islink(f"{above}/{name}"):
                yield f"{above}/{name}", os.readlink(f"{above}/{name}")


def _state(folder: str) -> list[tuple[str, int, int, bytes]]:
    found = []
    for name in sorted(os.listdir(folder)):
        status = os.lstat(f"{folder}/{name}")
        with open(f"{folder}/{name}", "rb") as file:
            found.append((name, status.st_mode, status.st_mtime_ns, file.read(64)))
    return found
