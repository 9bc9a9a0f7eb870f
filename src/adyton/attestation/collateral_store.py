"""What vendors publish, kept in a folder: fetched once for all who wait, and again only when it says that something newer is due.

A file for each document, named by the digest of its address: a line of JSON (address, until when it holds, sizes), then the document, then the
certificates that came along. All of it is signed, so nothing depends on who wrote the folder; what cannot be read is fetched again.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import hashlib
import os
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

import msgspec

from adyton.attestation.collateral import MAX_FILE, Collateral, read_blobs
from adyton.attestation.needed import CHAIN_HEADERS, INTEL, Need, Vendor, needed

TIMEOUT = 10.0  # seconds, for one answer
UNSAID = dt.timedelta(hours=24)  # that a document holds which does not say how long
# Between two requests, in seconds: AMD answers one in ten seconds from an address, and 429 to more.
PAUSE: dict[Vendor, float] = {"amd": 10.0, "intel": 0.0}
REFUSED = 60.0  # seconds until a vendor that refused is asked again, unless it says so itself
LONGEST = 86_400.0  # seconds that a vendor may ask for
PATIENCE = 15.0  # seconds, for a vendor's next turn: a longer pause is not waited for


@dataclass(frozen=True)
class Answer:
    """Of a server: `headers` by lower-case name. `status` as in HTTP; 0: none was reached."""

    status: int
    headers: dict[str, str]
    body: bytes


class _Head(msgspec.Struct, frozen=True):
    url: str
    until: dt.datetime
    sizes: list[int]  # of the document, and of what came along


def fetch(url: str) -> Answer:
    """Over HTTPS, with the system's own authorities: who answers matters little, since all of it is signed."""
    request = urllib.request.Request(url, headers={"Accept": "*/*", "User-Agent": "adyton"})  # noqa: S310 - https, of `needed`
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:  # noqa: S310
            return Answer(answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read(MAX_FILE + 1))
    except urllib.error.HTTPError as error:
        return Answer(error.code, {k.lower(): v for k, v in error.headers.items()}, b"")
    except (OSError, ValueError):
        return Answer(0, {}, b"")


class CollateralStore:
    """Thread-safe, and safe among processes that share the folder. `fetch`: None for one that never asks anybody."""

    def __init__(
        self,
        folder: str,
        fetch: Callable[[str], Answer] | None = fetch,
        now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
        wait: Callable[[float], None] = time.sleep,
        intel: str = INTEL,
    ) -> None:
        """`now`, `wait`: the clock; seconds. `intel`: where Intel's documents are, a PCCS perhaps."""
        self._folder = folder
        self._fetch = fetch
        self._now = now
        self._wait = wait
        self._intel = intel
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}

    def for_evidence(self, evidence: bytes) -> Collateral:
        """What there is for it, fetched if need be; what cannot be had is left out, and missed by who verifies."""
        for first, *others in needed(evidence, intel=self._intel):
            if (document := self._document(first)) is not None:
                more = [found for need in others if (found := self._document(need)) is not None]
                return read_blobs(tuple(blob for blobs in (document, *more) for blob in blobs))
        return Collateral()

    def _document(self, need: Need) -> list[bytes] | None:
        path = os.path.join(self._folder, hashlib.sha256(need.url.encode()).hexdigest())
        kept = self._kept(path, need)
        if kept is not None and kept[1]:
            return kept[0]
        stale = None if kept is None else kept[0]  # better than nothing: who verifies says that it is old
        if self._fetch is None:
            return stale
        with self._alone(path):
            kept = self._kept(path, need)
            if kept is not None and kept[1]:
                return kept[0]  # somebody else has fetched it meanwhile
            fresh = self._ask(self._fetch, need)
            if fresh is None:
                return stale
            _write(path, need.url, _holds_until(fresh, self._now()), fresh)
            return fresh

    def _kept(self, path: str, need: Need) -> tuple[list[bytes], bool] | None:
        """What is in the folder, and whether it still holds."""
        found = _read(path, need.url)
        return None if found is None else (found[1], need.lives or self._now() <= found[0].until)

    def _ask(self, ask: Callable[[str], Answer], need: Need) -> list[bytes] | None:
        turn = os.path.join(self._folder, f"{need.vendor}.wait")
        with self._alone(turn):
            left = (_time_in(turn) - self._now()).total_seconds()
            if PATIENCE < left <= LONGEST:  # beyond it, the clock was set back
                return None
            if 0 < left <= PATIENCE:
                self._wait(left)
            answer = ask(need.url)
            pause = PAUSE[need.vendor]
            if answer.status in (0, 429, 503):
                pause = max(pause, _retry_after(answer, self._now()))
            if pause:
                _replace(turn, (self._now() + dt.timedelta(seconds=pause)).isoformat().encode())
        if answer.status != 200 or len(answer.body) > MAX_FILE:
            return None
        chains = [answer.headers[name.lower()] for name in CHAIN_HEADERS if name.lower() in answer.headers]
        return [answer.body, *(urllib.parse.unquote(chain).encode() for chain in chains)]

    @contextlib.contextmanager
    def _alone(self, path: str) -> Iterator[None]:
        """One at a time, of all threads, and of all processes if the folder can be written."""
        with self._lock:
            lock = self._locks.setdefault(path, threading.Lock())
        with lock, contextlib.ExitStack() as opened:
            try:
                os.makedirs(self._folder, 0o700, exist_ok=True)
                file = opened.enter_context(open(f"{path}.lock", "wb"))
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:
                pass  # then each process fetches for itself
            yield


def _read(path: str, url: str) -> tuple[_Head, list[bytes]] | None:
    try:
        with open(path, "rb") as file:
            head = msgspec.json.decode(file.readline(4096), type=_Head)
            blobs = [file.read(min(max(size, 0), MAX_FILE)) for size in head.sizes]
    except (OSError, msgspec.MsgspecError, UnicodeError):
        return None
    return (head, blobs) if head.url == url and [len(blob) for blob in blobs] == head.sizes else None


def _write(path: str, url: str, until: dt.datetime, blobs: list[bytes]) -> None:
    head = _Head(url, until, [len(blob) for blob in blobs])
    _replace(path, msgspec.json.encode(head) + b"\n" + b"".join(blobs))


def _replace(path: str, data: bytes) -> None:
    """Whole, or not at all; a folder that cannot be written costs a request more."""
    with contextlib.suppress(OSError):
        descriptor, name = tempfile.mkstemp(dir=os.path.dirname(path))
        try:
            with open(descriptor, "wb") as file:
                file.write(data)
            os.replace(name, path)
        except OSError:
            os.unlink(name)
            raise


def _holds_until(blobs: list[bytes], now: dt.datetime) -> dt.datetime:
    """When something newer is due, by what the document says itself."""
    found = read_blobs(tuple(blobs))
    times = [each.next_update_utc for each in found.revocation_lists if each.next_update_utc is not None]
    for fields, _ in found.documents:
        for part in fields.values():
            if isinstance(part, dict) and isinstance(part.get("nextUpdate"), str):
                with contextlib.suppress(ValueError):
                    times.append(dt.datetime.fromisoformat(part["nextUpdate"]).astimezone(dt.UTC))
    return min(times, default=now + UNSAID)


def _time_in(path: str) -> dt.datetime:
    try:
        with open(path, "rb") as file:
            return dt.datetime.fromisoformat(file.read(64).decode())
    except (OSError, ValueError):
        return dt.datetime.fromtimestamp(0, dt.UTC)


def _retry_after(answer: Answer, now: dt.datetime) -> float:
    """Seconds, by RFC 9110, 10.2.3."""
    said = answer.headers.get("retry-after", "")
    if said.isdigit():
        return min(float(said), LONGEST)
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, min((parsedate_to_datetime(said) - now).total_seconds(), LONGEST))
    return REFUSED
