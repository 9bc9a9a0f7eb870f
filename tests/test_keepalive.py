"""How often gRPC asks whether an idle session's other end is there: seldom, and while the enclave still waits."""

from __future__ import annotations

import pytest

from adyton.communicator.joining import GRACE_SECONDS
from adyton.remote.connection import _SERVER_PATIENCE, _pings

TIMEOUT = 6.0  # seconds, of a ping


@pytest.mark.parametrize(("grace", "seconds"), [(0, 4), (12, 4), (24, 4), (30, 10), (GRACE_SECONDS, 40), (3600, 40)])
def test_a_lost_connection_is_known_while_the_enclave_waits(grace, seconds):
    assert _pings(grace) == ("grpc.keepalive_time_ms", seconds * 1000)
    assert seconds + TIMEOUT < grace or grace <= 4 + TIMEOUT


@pytest.mark.parametrize("grace", [0, 30, GRACE_SECONDS, 3600])
def test_the_server_asks_only_where_the_client_does_not(grace):
    assert _pings(grace, _SERVER_PATIENCE)[1] > _pings(grace)[1]
