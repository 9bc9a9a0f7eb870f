"""What a supervisor keeps of its client's connections: nothing, once they are lost."""

import gc
import weakref

import pytest

from adyton.attestation.identity import EnclaveIdentity
from adyton.communicator.session import Session, Side
from adyton.handing_over import connect, control_pair
from adyton.runtime.process.supervisor.connections import Connections
from adyton.runtime.process.supervisor.loop import Loop


@pytest.fixture
def without_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_a_lost_connection_is_freed_at_once(without_collector):
    relay, control = control_pair()
    loop = Loop()
    identity = EnclaveIdentity("sim", "00" * 32, "", 0, 0, debug=True, runtime="", machine="")
    connections = Connections(
        *(control, loop, Session(Side.ENCLAVE), identity, lambda _identity, _data: b""),
        *(lambda _event: None, loop.stop, lambda: None, lambda step: step, 60.0),
    )
    connections.begin()
    with relay:
        with connect(relay):
            loop.turn()
            (kept,) = map(weakref.ref, connections._joining)
            assert kept() is not None
        loop.turn()
        assert kept() is None
    connections.close()
    loop.close()
