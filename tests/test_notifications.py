"""What is done with a duplicate of a guest's descriptor whose thread has gone meanwhile."""

from __future__ import annotations

import os

import pytest

from adyton.runtime.process.supervisor import notifications
from adyton.runtime.process.supervisor.notifications import GoneError, Listener, Note


def test_a_file_whose_thread_has_gone_is_left_to_who_may_wait_for_its_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """To close it here may ask this very process, as each close of a file that it serves does."""
    fetched, other = os.pipe()
    closed: list[int] = []
    monkeypatch.setattr(notifications, "system_call", lambda *_arguments: fetched)
    nobody = os.open(os.devnull, os.O_RDONLY)  # no listener: nobody waits
    listener = Listener(nobody, os.getpid(), closed.append)
    with pytest.raises(GoneError):
        listener.fetch(Note(1, os.getpid(), 0, 0, (0,) * 6), 3)
    assert closed == [fetched]
    os.fstat(fetched)  # still open
    for each in (fetched, other, nobody):
        os.close(each)
