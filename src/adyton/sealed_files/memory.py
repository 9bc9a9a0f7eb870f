"""What somebody else remembers of a store, so that a container that was set back as a whole is found. Sans-IO.

An *epoch* is one enclave's time with the container: 16 random bytes. Within it one commit follows the other, so that epoch and number name a commit for good. A store
keeps the epochs that it had, with the last commit of each: its *past*. By that it can tell whether it is what a note says, or has come from that; a branch, which
an enclave without that note has begun from an older state, has not.

    note    store (16 bytes) ‖ epoch (16) ‖ number of the commit (8, little-endian) ‖ HMAC-SHA256 of these under a key of the store's own
    past    of each epoch but the last, in order: its 16 bytes ‖ its last commit (8, little-endian)

So whoever has a note can show it or withhold it, or show an older one that he has kept, and can make none.
"""

from __future__ import annotations

import hmac
import struct
from dataclasses import dataclass

from adyton.errors import IntegrityError
from adyton.sealed_files.cipher import derived
from adyton.sealed_files.storage import Recall, Remember, Steps

EPOCH_SIZE = 16
STORE_SIZE = 16
NOTE_SIZE = 72
ENTRY = struct.Struct(f"<{EPOCH_SIZE}sQ")  # of a past
MAX_PAST = ENTRY.size << 20  # bytes
_NOTE = struct.Struct(f"<{STORE_SIZE}s{EPOCH_SIZE}sQ")
_DOCS = "see docs/sealed-files.md"

NOBODY = (
    f"nobody remembers the last commit of these sealed files: if all of them are set back, that is not found ({_DOCS})"
)
FIRST = f"nothing was remembered of these sealed files: if all of them were set back, that is not found now; from now on it is ({_DOCS})"


@dataclass(frozen=True, slots=True)
class Commit:
    """`counter`: how many there were before it in the store, and this one."""

    epoch: bytes
    counter: int


class Notes:
    """Of one store, whose secret it is. `store`: by which its notes are known from others'."""

    def __init__(self, secret: bytes) -> None:
        self.store = derived(secret, b"name")[:STORE_SIZE]
        self._key = derived(secret, b"notes")

    def of(self, commit: Commit) -> bytes:
        """The one note of that commit."""
        clear = _NOTE.pack(self.store, commit.epoch, commit.counter)
        return clear + hmac.digest(self._key, clear, "sha256")

    def read(self, note: bytes) -> Commit:
        """IntegrityError: it is none of this store's."""
        if len(note) == NOTE_SIZE and hmac.compare_digest(
            note[_NOTE.size :], hmac.digest(self._key, note[: _NOTE.size], "sha256")
        ):
            _, epoch, counter = _NOTE.unpack_from(note)
            return Commit(epoch, counter)
        if len(note) == NOTE_SIZE and note[:STORE_SIZE] != self.store:
            raise IntegrityError(
                "the sealed files are others than those that are remembered: the container was replaced. Restore it as it was; or, to go on with this one, "
                f"remove what is remembered: {_DOCS}"
            )
        raise IntegrityError(
            f"what is remembered of the sealed files is damaged. Restore it as it was; or, to go on without it, remove it: {_DOCS}"
        )


class Memory:
    """What one enclave knows of what is remembered of its store. `remembers`: there is somebody who does; `demands`: nothing is opened that nobody remembers.

    `doubtful`: why, when it was opened, it could have been set back unseen; None: it could not, or is new.
    """

    def __init__(self, *, remembers: bool, demands: bool) -> None:
        self.doubtful: str | None = NOBODY
        self._remembers = remembers
        self._demands = demands
        self._note = b""

    def recall(self, notes: Notes, found: Commit | None) -> Steps[Commit | None]:
        """What is remembered; None: nothing. `found`: the last commit that is there; None: none. IntegrityError, StorageError: what is there is not to be opened."""
        if self._remembers:
            self._note = yield Recall(b"" if found is None else notes.store)
            is_new = found is None or found.counter == 0
            self.doubtful = None if is_new or self._note else FIRST
        if self._note and found is None:
            raise _gone(self._note)
        if self._demands and self.doubtful is not None:
            raise _demanded(remembers=self._remembers)
        if not self._note or found is None:
            return None
        remembered = notes.read(self._note)
        if remembered.counter > found.counter:
            raise set_back(found, remembered)
        return remembered

    def tell(self, notes: Notes, commit: Commit) -> Steps[None]:
        """Have it remembered in the place of what is. StorageError."""
        note = notes.of(commit)
        if self._remembers and note != self._note:
            yield Remember(self._note, note)
            self._note = note


def counter_of(note: bytes) -> int:
    """Which commit it is of, if it is a note: nobody has judged it."""
    return int(_NOTE.unpack_from(note)[2]) if len(note) == NOTE_SIZE else 0


def last_in(entries: bytes, epoch: bytes) -> int | None:
    """The last commit of an epoch among entries of a past; None: it is not there."""
    return next((counter for each, counter in reversed(list(ENTRY.iter_unpack(entries))) if each == epoch), None)


def _gone(note: bytes) -> IntegrityError:
    """There is a note, and no store."""
    return IntegrityError(
        f"the sealed files are gone: their container is empty, and commit {counter_of(note)} of them is remembered. Restore it; or, to begin anew, remove what is "
        f"remembered: {_DOCS}"
    )


def set_back(found: Commit, remembered: Commit) -> IntegrityError:
    """There is a store, and it has not come from what is remembered."""
    which = "a branch with" if found.counter >= remembered.counter else "at"
    return IntegrityError(
        f"the sealed files were set back: their container is {which} commit {found.counter}, and commit {remembered.counter}, which it never had, is remembered. "
        "Restore the latest one"
    )


def _demanded(*, remembers: bool) -> IntegrityError:
    """Nothing is remembered, though it must be."""
    why = "nothing is remembered of them" if remembers else "nobody remembers them here"
    return IntegrityError(
        f"the sealed files may have been set back: {why}, and the image or the client's policy demands that somebody does. Bring back what was remembered, "
        f"or have it remembered: {_DOCS}"
    )
