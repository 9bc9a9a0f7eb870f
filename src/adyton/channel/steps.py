"""The steps that either end of a channel goes through, and what each allows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

State = Literal[
    "handshake", "request", "attesting", "acceptance", "evidence", "judging", "open", "closed", "ended", "failed"
]
Input = Literal["handshake finished", "AttestRequest", "provide", "Evidence", "accept", "Accept", "send", "close"]
Part = Literal["verifies", "proves", "verifies, then proves", "proves, then verifies"]
Steps = Mapping[State, Mapping[Input, State]]

# What all parts have. The peer may end ("ended") or fail while evidence is made or judged: what we then say has no taker, and is no mistake.
_COMMON: Steps = {
    "open": {"send": "open", "close": "closed"},
    "closed": {"close": "closed"},
    "ended": {"provide": "ended", "accept": "ended", "close": "closed"},
    "failed": {"provide": "failed", "accept": "failed", "close": "failed"},
}

# Part of an end → state → our call, or what comes from the peer → next state. What is missing is a violation; data is read in "open" alone.
# Whoever comes to "evidence" asks for it.
STEPS: Mapping[Part, Steps] = {
    "verifies": {
        "handshake": {"handshake finished": "evidence", "close": "closed"},
        "evidence": {"Evidence": "judging", "close": "closed"},
        "judging": {"accept": "open", "close": "closed"},
        **_COMMON,
    },
    "proves": {
        "handshake": {"handshake finished": "request", "close": "closed"},
        "request": {"AttestRequest": "attesting", "close": "closed"},
        "attesting": {"provide": "acceptance", "close": "closed"},
        "acceptance": {"Accept": "open", "close": "closed"},
        **_COMMON,
    },
    "verifies, then proves": {
        "handshake": {"handshake finished": "evidence", "close": "closed"},
        "evidence": {"Evidence": "judging", "close": "closed"},
        "judging": {"accept": "request", "close": "closed"},
        "request": {"AttestRequest": "attesting", "close": "closed"},
        "attesting": {"provide": "acceptance", "close": "closed"},
        "acceptance": {"Accept": "open", "close": "closed"},
        **_COMMON,
    },
    "proves, then verifies": {
        "handshake": {"handshake finished": "request", "close": "closed"},
        "request": {"AttestRequest": "attesting", "close": "closed"},
        "attesting": {"provide": "acceptance", "close": "closed"},
        "acceptance": {"Accept": "evidence", "close": "closed"},
        "evidence": {"Evidence": "judging", "close": "closed"},
        "judging": {"accept": "open", "close": "closed"},
        **_COMMON,
    },
}
