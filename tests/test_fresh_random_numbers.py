"""What is forked from a zygote has random numbers of its own, whatever its number is."""

import os
import subprocess
import sys

import pytest

KEY = """
import ctypes, os, signal
from cryptography.hazmat.primitives.asymmetric import ec
from adyton.crypto.fresh import draw_anew
unshare = ctypes.CDLL(None).unshare

def key():
    return ec.generate_private_key(ec.SECP256R1()).private_numbers().private_value

def within(step):
    # What `step` says as number 2 of a pid namespace of its own.
    reading, writing = os.pipe()
    if os.fork() == 0:
        assert unshare(0x20000000) == 0
        first = os.fork()
        if first == 0:
            signal.pause()
        if os.fork() == 0:
            os.write(writing, step())
            os._exit(0)
        os.wait()
        os.kill(first, 9)
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        return file.read()

def guest():
    assert os.getpid() == 2
    if %r:
        draw_anew()
    return b"%%x\\n" %% key()

def zygote():
    assert os.getpid() == 2
    key()
    return within(guest) + within(guest)

print(within(zygote).decode())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: no pid namespaces")
@pytest.mark.parametrize(("draws", "different"), [(False, 1), (True, 2)])
def test_processes_with_the_zygotes_number_have_random_numbers_of_their_own(draws, different):
    """As in a container whose second process is the zygote: guests are number 2 as well."""
    found = subprocess.run([sys.executable, "-c", KEY % draws], capture_output=True, text=True, timeout=60, check=True)
    assert len(set(found.stdout.split())) == different, found.stderr
