"""No sequence of host calls on files leads out of what is allowed."""

from __future__ import annotations

import os
import stat

from executing import Client, furnished
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adyton.hostcall import abi

NAMES = st.sampled_from(["read", "write", "secret", "file", "sub", "deep", "link", "out", "new", "none", "..", ".", ""])
TAILS = st.lists(NAMES, max_size=4)
HANDLES = st.integers(0, 3)
SIZES = st.integers(0, 1 << 63)


def requests(home: str):
    path = TAILS.map(lambda names: "/".join([home, *names]))
    return st.one_of(
        st.builds(abi.Access, path, st.sampled_from(["read", "write"])),
        st.builds(abi.Stat, path),
        st.builds(abi.ReadLink, path),
        st.builds(abi.List, path, st.integers(0, 3)),
        st.builds(
            abi.Open,
            path,
            HANDLES,
            st.sampled_from(["read", "write", "read-write"]),
            st.booleans(),
            st.booleans(),
            st.booleans(),
        ),
        st.builds(abi.Read, HANDLES, st.integers(0, 100), st.integers(0, 100)),
        st.builds(abi.Write, HANDLES, st.integers(0, 100), st.binary(max_size=10)),
        st.builds(
            abi.SetAttributes,
            path,
            st.none() | HANDLES,
            st.none() | st.integers(0, 1000),
            st.none() | st.integers(0, 0o7777),
        ),
        st.builds(abi.Sync, HANDLES, st.booleans()),
        st.builds(abi.Close, HANDLES),
        st.builds(abi.MakeDirectory, path, st.integers(0, 0o7777)),
        st.builds(abi.Remove, path, st.booleans()),
        st.builds(abi.Rename, path, path, st.booleans()),
    )


# In place of the profile's list, so that a loaded machine is no failure here either.
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(data=st.data(), walk=st.booleans())
def test_no_sequence_of_requests_reaches_the_secret(tmp_path_factory, data, walk):
    home = furnished(tmp_path_factory.mktemp("hostile"))
    (home / "read/link").symlink_to("../secret")
    (home / "write/link").symlink_to("../secret/file")
    (home / "write/out").symlink_to("../secret")
    client = Client(home, walk=walk)
    with client.executor:
        for request in data.draw(st.lists(requests(str(home)), max_size=25)):
            result = client(request)
            assert not isinstance(result, abi.Data) or b"secret" not in result.data
            assert not isinstance(result, abi.Failed) or result.errno in abi.ERRNO_NAMES
    assert {path.name: path.read_bytes() for path in (home / "secret").iterdir()} == {"file": b"secret"}
    assert (home / "read/file").read_bytes() == b"0123456789"
    assert sorted(os.listdir(home / "read")) == ["file", "link", "sub"]
    assert stat.S_IMODE((home / "secret/file").stat().st_mode) & 0o133 == 0
