"""Enclaves whose /sealed is set back as a whole between two loads; whom it belongs to; and where there can be none."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

import adyton
from adyton import EnclaveClient, Policy
from adyton.crypto.keys import SigningKey, debug_key
from adyton.errors import IntegrityError, UsageError
from adyton.image.build import make_image, script_image
from adyton.image.oci import Image
from adyton.image.sign import add_signature
from adyton.image.signature import make_signature

pytestmark = pytest.mark.sandbox

PROGRAM = """
import os

def put(content: str) -> None:
    with open("/sealed/f", "w") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())

def get() -> str:
    with open("/sealed/f") as file:
        return file.read()
"""
NOBODY = "adyton: nobody remembers the last commit of these sealed files"
FIRST = "adyton: nothing was remembered of these sealed files"


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "keeper.py"
    path.write_text(PROGRAM)
    return path


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Its address; its folder for sealed files is of-the-server."""
    command = [
        sys.executable,
        "-m",
        "adyton.cli",
        "serve",
        "--port",
        "0",
        "--sealed-directory",
        tmp_path / "of-the-server",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"grpc://{process.stdout.readline().split()[-1]}"
        finally:
            process.terminate()


class Place:
    """Where the container is, on the server's disk or on the client's, and who remembers."""

    def __init__(self, kind: str, program: Path, server: str, folder: Path, state: Callable[[str], Path]) -> None:
        self.kind = kind
        self._program = program
        self._server = server
        self._folder = folder
        self._state = state

    def load(self, who: str = "ann", image: Image | None = None, **how) -> EnclaveClient:
        """By a client with a memory of its own."""
        self._state(who)
        if self.kind == "client":
            how["sealed"] = self._folder / "of-the-client"
        return adyton.load(image or self._program, on=self._server, **{"allow_sim": True, **how})

    @property
    def container(self) -> Path:
        pattern = "of-the-client/*.sealed" if self.kind == "client" else "of-the-server/*/container"
        (found,) = self._folder.glob(pattern)
        return found

    def forget(self) -> None:
        """Who remembers does not any more."""
        pattern = "of-the-server/*/remembered" if self.kind == "client" else "state/*/adyton/sealed/*/*"
        (found,) = self._folder.glob(pattern)
        if self.kind == "client":
            found.write_bytes(b"")
        else:
            found.unlink()


@pytest.fixture(params=["server", "client"])
def place(request: pytest.FixtureRequest, program: Path, server: str, tmp_path: Path, monkeypatch) -> Place:
    def state(who: str) -> Path:
        folder = tmp_path / "state" / who
        monkeypatch.setenv("XDG_STATE_HOME", str(folder))
        return folder

    return Place(request.param, program, server, tmp_path, state)


def test_a_container_that_is_set_back_as_a_whole_between_two_loads_is_found(
    place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    for content in ("first", "second"):
        with place.load() as enclave:
            enclave.call("put", content)
        if content == "first":
            first = place.container.read_bytes()
    second = place.container.read_bytes()
    place.container.write_bytes(first)
    with pytest.raises(IntegrityError, match="the sealed files were set back: their container is at commit") as caught:
        place.load()
    assert caught.value.exit_code == 1
    assert "Restore the latest one" in caught.value.message
    place.container.write_bytes(second)
    with place.load() as enclave:
        assert enclave.call("get") == "second"
    said = capfd.readouterr().err
    assert NOBODY not in said
    assert FIRST not in said


def test_a_memory_that_was_lost_is_said_and_can_be_refused(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    demanding = Policy.parse('[sealed]\nmemory = "required"\n', name="policy", base="/")
    with place.load(policy=demanding) as enclave:
        enclave.call("put", "kept")
    place.forget()
    with pytest.raises(IntegrityError, match="may have been set back: nothing is remembered of them"):
        place.load(policy=demanding)
    capfd.readouterr()
    with place.load() as enclave:
        assert enclave.call("get") == "kept"
    assert capfd.readouterr().err.count(FIRST) == 1
    with place.load(policy=demanding) as enclave:
        assert enclave.call("get") == "kept"


def test_two_clients_of_a_server_take_turns_and_each_finds_what_he_saw_set_back(
    program: Path, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(
        "server", program, server, tmp_path, lambda who: monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / who))
    )
    states = []
    for who, content in (("ann", "1"), ("bob", "2"), ("ann", "3"), ("bob", "4")):
        with place.load(who) as enclave:
            if states:
                assert enclave.call("get") == str(len(states))
            enclave.call("put", content)
        states.append(place.container.read_bytes())
    place.container.write_bytes(states[2])  # of Ann's last load
    with pytest.raises(IntegrityError, match="set back"):
        place.load("bob")
    with place.load("ann") as enclave:  # she cannot know better, and goes on from there
        enclave.call("put", "branch")
        enclave.call("put", "branch")
    with pytest.raises(IntegrityError, match="a branch with commit"):
        place.load("bob")


def test_where_nobody_remembers_it_is_said_and_can_be_refused(
    program: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sealed = tmp_path / "sealed"
    with adyton.load(program, sealed=sealed) as enclave:
        enclave.call("put", "kept")
    assert capfd.readouterr().err.count(NOBODY) == 1
    demanding = Policy.parse('[sealed]\nmemory = "required"\n', name="policy", base="/")
    with pytest.raises(IntegrityError, match="nobody remembers them here"):
        adyton.load(program, sealed=sealed, policy=demanding)


def test_a_proxy_server_has_a_place_for_sealed_files_too(program: Path, tmp_path: Path) -> None:
    proxy = shlex.join(
        [sys.executable, "-m", "adyton.cli", "proxy", "--sealed-directory", str(tmp_path / "of-the-proxy")]
    )
    with adyton.load(program, remote_proxy=proxy) as enclave:
        enclave.call("put", "kept")
    (container,) = tmp_path.glob("of-the-proxy/sha256-*/container")
    before = container.read_bytes()
    with adyton.load(program, remote_proxy=proxy) as enclave:
        assert enclave.call("get") == "kept"
        enclave.call("put", "later")
    container.write_bytes(before)
    with pytest.raises(IntegrityError, match="set back"):
        adyton.load(program, remote_proxy=proxy)


# -- whom they belong to ---------------------------------------------------------------------------------------------------


@pytest.fixture
def image(program: Path) -> Callable[..., Image]:
    """Whose sealed files belong to its signer."""
    plain = script_image(program).manifest

    def image(key: SigningKey, version: int, product: int = 7) -> Image:
        manifest = msgspec.structs.replace(plain, product_id=product, security_version=version, seal="signer")
        return add_signature(make_image(manifest, {"keeper.py": PROGRAM.encode()}), key)

    return image


def test_files_of_the_signer_are_opened_by_a_newer_version_and_by_no_older_one(place: Place, image) -> None:
    key = SigningKey.generate()
    with place.load(image=image(key, 1)) as enclave:
        enclave.call("put", "one")
    first = place.container.read_bytes()
    with place.load(image=image(key, 2)) as enclave:
        assert enclave.call("get") == "one"
        enclave.call("put", "two")
    with pytest.raises(IntegrityError, match="an older version opens nothing of a later one's"):
        place.load(image=image(key, 1))
    place.container.write_bytes(first)  # then the older version could open it
    for version in (1, 2):
        with pytest.raises(IntegrityError, match="set back"):
            place.load(image=image(key, version))


def test_files_of_the_signer_are_not_those_of_another_signer_or_product(place: Place, image) -> None:
    key = SigningKey.generate()
    with place.load(image=image(key, 1)) as enclave:
        enclave.call("put", "one")
    for other in (image(SigningKey.generate(), 1), image(key, 1, product=8)):
        if place.kind == "server":  # where each has a folder of its own
            with place.load(image=other) as enclave, pytest.raises(FileNotFoundError):
                enclave.call("get")
        else:
            with pytest.raises(IntegrityError, match="only images of that"):
                place.load(image=other)


def test_an_image_of_everybodys_key_has_no_files_of_its_signer(place: Place, image) -> None:
    """None is built, nor signed so; and whoever does it has an enclave that is not loaded."""
    unsigned = image(SigningKey.generate(), 1)
    with pytest.raises(UsageError, match="the debug key, which everybody has"):
        add_signature(unsigned, debug_key())
    signature = make_signature(unsigned.measurement, unsigned.manifest, debug_key())
    bare = make_image(unsigned.manifest, {"keeper.py": PROGRAM.encode()})
    with pytest.raises(
        UsageError, match="there can be no sealed files: nothing can be sealed to this image's signer"
    ) as caught:
        place.load(image=bare.with_signature(signature))
    assert caught.value.exit_code == 2


def test_an_image_can_demand_that_somebody_remembers(program: Path, tmp_path: Path) -> None:
    manifest = msgspec.structs.replace(script_image(program).manifest, seal_memory="required")
    demanding = add_signature(make_image(manifest, {"keeper.py": PROGRAM.encode()}), debug_key())
    with pytest.raises(IntegrityError, match="nobody remembers them here"):
        adyton.load(demanding, sealed=tmp_path / "sealed")
    with adyton.load(demanding) as enclave, pytest.raises(FileNotFoundError):
        enclave.call("get")
