"""What vendors publish, kept in a folder: fetched once for all who wait, and again only when it says that something newer is due.

A file for each document, named by the digest of its address: a line of JSON (address, when it was fetched, until when it holds), then the
document, then the certificates that came along. Signed all of it, so nothing depends on who wrote the folder; a file that cannot be read is fetched again.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import hashlib
import os
import tempfile
import threading
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


@dataclass(frozen=True)
class Answer:
    """Of a server: `headers` by lower-case name. `status` as in HTTP; 0: none was reached."""

    status: int
    headers: dict[str, str]
    body: bytes


class _Head(msgspec.Struct, frozen=True):
    url: str
    fetched: dt.datetime
    until: dt.datetime
    size: int  # of the document, behind which certificates are


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
        intel: str = INTEL,
    ) -> None:
        self._folder = folder
        self._fetch = fetch
        self._now = now
        self._intel = intel
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}

    def for_evidence(self, evidence: bytes) -> Collateral:
        """What there is for it, fetched if need be; what cannot be had is left out, and missed by who verifies."""
        found = Collateral()
        for need in needed(evidence, intel=self._intel):
            document = self._document(need)
            if document is not None:
                found += read_blobs((document,))
        return found

    def _document(self, need: Need) -> bytes | None:
        path = os.path.join(self._folder, hashlib.sha256(need.url.encode()).hexdigest())
        kept = _read(path, need.url)
        if kept is not None and (need.lives or self._now() <= kept[0].until):
            return kept[1]
        if self._fetch is None:
            return None if kept is None else kept[1]
        with self._alone(path):
            again = _read(path, need.url)
            if again is not None and (need.lives or self._now() <= again[0].until):
                return again[1]  # somebody else has fetched it meanwhile
            fresh = self._ask(need)
            if fresh is None:
                return None if kept is None else kept[1]
            _write(path, need.url, self._now(), fresh)
            return fresh

    def _ask(self, need: Need) -> bytes | None:
        assert self._fetch is not None
        wait = os.path.join(self._folder, f"{need.vendor}.wait")
        with self._alone(wait):
            if self._now() < _time_in(wait):
                return None
            answer = self._fetch(need.url)
            pause = PAUSE[need.vendor]
            if answer.status in (0, 429, 503):
                pause = max(pause, _retry_after(answer, self._now()))
            if pause:
                _replace(wait, (self._now() + dt.timedelta(seconds=pause)).isoformat().encode())
        if answer.status != 200 or len(answer.body) > MAX_FILE:
            return None
        chains = [
            urllib.parse.unquote(answer.headers[name.lower()])
            for name in CHAIN_HEADERS
            if name.lower() in answer.headers
        ]
        return answer.body + b"".join(b"\n" + chain.encode() for chain in chains)

    @contextlib.contextmanager
    def _alone(self, path: str) -> Iterator[None]:
        """One at a time, of all threads and processes."""
        with self._lock:
            lock = self._locks.setdefault(path, threading.Lock())
        os.makedirs(self._folder, 0o700, exist_ok=True)
        with lock, open(f"{path}.lock", "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _read(path: str, url: str) -> tuple[_Head, bytes] | None:
    try:
        with open(path, "rb") as file:
            head = msgspec.json.decode(file.readline(4096), type=_Head)
            body = file.read(2 * MAX_FILE)
    except (OSError, msgspec.MsgspecError, UnicodeError):
        return None
    return (head, body) if head.url == url and len(body) >= head.size else None


def _write(path: str, url: str, now: dt.datetime, document: bytes) -> None:
    head = _Head(url, now, _holds_until(document, now), len(document))
    _replace(path, msgspec.json.encode(head) + b"\n" + document)


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


def _holds_until(document: bytes, now: dt.datetime) -> dt.datetime:
    """When something newer is due, by what the document says itself."""
    found = read_blobs((document,))
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
        return min(float(said), 86_400.0)
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, min((parsedate_to_datetime(said) - now).total_seconds(), 86_400.0))
    return REFUSED
