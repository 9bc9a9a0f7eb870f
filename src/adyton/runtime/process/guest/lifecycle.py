"""An enclave's life, without IO: TABLE says for each state which inputs there are, and the state that each leads to.

    state            what is going on                              how it ends
    UNINITIALIZED    the sandbox is up; nothing of the program ran  the client loads
    INITIALIZING     the program is imported and initialized       it is loaded, or that failed
    RUNNING          calls are taken, from any number of threads   the client finalizes
    FINALIZING       the program's finalize runs                   it returned or raised
    FINALIZED        nothing is taken any more

An input that has no row is refused with FAILED_PRECONDITION, and changes nothing. A load that failed ends in FINALIZED: the walls of the
sandbox are put up once, so there is no second try in the same process.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Mapping

from adyton.errors import ClosedError


class State(enum.Enum):
    __hash__ = object.__hash__  # as good as Enum's, which is Python's code
    UNINITIALIZED = enum.auto()
    INITIALIZING = enum.auto()
    RUNNING = enum.auto()
    FINALIZING = enum.auto()
    FINALIZED = enum.auto()


class Input(enum.Enum):
    """The client's: LOAD, ENTER (an entry or run), FINALIZE. The others say how a load or a finalize ended."""

    __hash__ = object.__hash__
    LOAD = enum.auto()
    LOADED = enum.auto()
    LOAD_FAILED = enum.auto()
    ENTER = enum.auto()
    FINALIZE = enum.auto()
    FINALIZE_ENDED = enum.auto()


TABLE: Mapping[State, Mapping[Input, State]] = {
    State.UNINITIALIZED: {Input.LOAD: State.INITIALIZING},
    State.INITIALIZING: {Input.LOADED: State.RUNNING, Input.LOAD_FAILED: State.FINALIZED},
    State.RUNNING: {Input.ENTER: State.RUNNING, Input.FINALIZE: State.FINALIZING},
    State.FINALIZING: {Input.FINALIZE_ENDED: State.FINALIZED},
    State.FINALIZED: {},
}

_REFUSALS: Mapping[State, str] = {
    State.UNINITIALIZED: "the enclave is not initialized yet: load it first",
    State.INITIALIZING: "the enclave is being initialized: wait until its load has returned",
    State.RUNNING: "the enclave is loaded already: destroy it before another load",
    State.FINALIZING: "the enclave is being finalized, and takes nothing any more: load it again",
    State.FINALIZED: "the enclave is finalized: load it again",
}


class Lifecycle:
    """The state of one enclave. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._state = State.UNINITIALIZED

    @property
    def state(self) -> State:
        return self._state

    def apply(self, what: Input) -> None:
        """Go where the table says; ClosedError if it has no row for this input in this state."""
        with self._lock:
            following = TABLE[self._state].get(what)
            if following is None:
                raise ClosedError(_REFUSALS[self._state])
            self._state = following
