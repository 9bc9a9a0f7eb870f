"""What a machine's firmware says that it extended PCRs with: the event log, read and replayed.

TCG PC Client Platform Firmware Profile, "Event Logging", the crypto-agile format. Numbers are little-endian. The first event is in the format of
TPM 1.2, and says which digests those behind it have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from adyton.attestation.findings import Failure, refuse
from adyton.attestation.tpm.abi import HASHES, SIZES, Reader

MAX_LOG = 1 << 17  # bytes; the longest have some 70 KiB
MAX_EVENTS = 4096
FIRMWARES = frozenset(range(8))  # the PCRs that nobody extends once the firmware has started something else
_HEAD = b"Spec ID Event03\0"
_NO_ACTION = 3  # extends nothing
_LOCALITY = b"StartupLocality\0"
_PCRS = 24


class Event(NamedTuple):
    """`digests`: by name of the hash, those that are known here."""

    pcr: int
    kind: int
    digests: Mapping[str, bytes]
    data: bytes


class Log(NamedTuple):
    """`banks`: those that it has digests for. `events`: those behind the first."""

    banks: frozenset[str]
    events: tuple[Event, ...]


def is_agile(data: bytes) -> bool:
    """Whether it has the format that is read here; older firmware logs SHA-1 only."""
    return data[32 : 32 + len(_HEAD)] == _HEAD


def parse(data: bytes) -> Log:
    """Hostile bytes. Only EvidenceMalformedError leaves."""
    reader = Reader(data, "the event log", "little", most=MAX_LOG)
    sizes = _sizes(reader)
    events: list[Event] = []
    while reader:
        if len(events) == MAX_EVENTS:
            raise refuse("malformed", "the event log", f"at most {MAX_EVENTS} events", "more")
        events.append(_event(reader, sizes))
    return Log(frozenset(HASHES[number] for number in sizes if number in HASHES), tuple(events))


def _sizes(reader: Reader) -> dict[int, int]:
    """Of the digests, by number of their hash."""
    _pcr, kind, _digest = reader.number(4), reader.number(4), reader.take(20)
    head = Reader(reader.take(reader.number(4)), "the event log's head", "little")
    if kind != _NO_ACTION or head.take(len(_HEAD)) != _HEAD:
        raise refuse("malformed", "the event log", "one of TPM 2.0 (crypto-agile)", "another")
    head.take(8)  # the platform's class, the profile's version, the size of its numbers
    count = head.number(4)
    if not 0 < count <= 16:
        raise refuse("malformed", "hashes of the event log", "1 to 16", str(count))
    sizes = {}
    for _ in range(count):
        number, size = head.number(2), head.number(2)
        if number in sizes or size != SIZES.get(HASHES.get(number, ""), size):
            raise refuse(
                "malformed", "hashes of the event log", "each once, of its size", f"{number:#06x}, {size} bytes"
            )
        sizes[number] = size
    head.take(head.number(1))  # the vendor's
    head.end()
    return sizes


def _event(reader: Reader, sizes: Mapping[int, int]) -> Event:
    pcr, kind, count = reader.number(4), reader.number(4), reader.number(4)
    digests = {}
    for _ in range(count):
        number = reader.number(2)
        if number not in sizes or number in digests:
            raise refuse("malformed", "digests of an event", "those that the head names, each once", f"{number:#06x}")
        digests[number] = reader.take(sizes[number])
    if kind != _NO_ACTION and (len(digests) != len(sizes) or pcr >= _PCRS):
        raise refuse("malformed", "an event", f"{len(sizes)} digests for one of {_PCRS} PCRs", f"{count} for PCR {pcr}")
    known = {HASHES[number]: digest for number, digest in digests.items() if number in HASHES}
    return Event(pcr, kind, known, reader.take(reader.number(4)))


def initial(bank: str, pcr: int) -> bytes:
    """What a PCR is before anything extends it: zeros; ones in those of a late launch (17 to 22), which there was none of."""
    return (b"\xff" if 17 <= pcr <= 22 else b"\0") * SIZES[bank]


def replay(events: Iterable[Event], bank: str) -> dict[int, bytes]:
    """What the PCRs that the events are of must be in one of the log's banks, if it is true and nothing else extended them."""
    values: dict[int, bytes] = {}
    for event in events:
        if event.kind == _NO_ACTION:
            if event.pcr == 0 and event.data.startswith(_LOCALITY) and len(event.data) == len(_LOCALITY) + 1:
                values.setdefault(0, event.data[-1:].rjust(SIZES[bank], b"\0"))  # from where the firmware was started
            continue
        value = values.get(event.pcr, initial(bank, event.pcr))
        values[event.pcr] = hashlib.new(bank, value + event.digests[bank]).digest()
    return values


class Explained(NamedTuple):
    """`whole`: the PCRs that the log leads to. `further`: those that were extended after it ends, or that it does not tell of."""

    whole: tuple[str, ...]
    further: tuple[str, ...]
    failures: tuple[Failure, ...]


def explain(data: bytes, values: Mapping[tuple[str, int], bytes]) -> Explained:
    """What the log says of PCRs' values. It contradicts them where the firmware's own differ: those are extended by nobody afterwards.

    Only EvidenceMalformedError leaves.
    """
    log = parse(data)
    replayed = {bank: replay(log.events, bank) for bank in log.banks}
    whole, further, failures = [], [], []
    for (bank, number), value in values.items():
        name = f"{bank}:{number}"
        if bank not in replayed:
            further.append(name)
            continue
        wanted = replayed[bank].get(number, initial(bank, number))
        if wanted == value:
            whole.append(name)
        elif number in FIRMWARES:
            failures.append(Failure("genuine", f"event log of {name}", value.hex(), wanted.hex()))
        else:
            further.append(name)
    return Explained(tuple(whole), tuple(further), tuple(failures))
