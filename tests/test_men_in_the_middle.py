"""Real men in the middle, between two hosts: what each does with the enclave's evidence, the client refuses before it has told a secret."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import network
import pytest
from middle import TRICKS
from network import INSIDE, SERVER, Network

pytestmark = [pytest.mark.netns, pytest.mark.sandbox, pytest.mark.long, pytest.mark.each_variant]

ARGUMENT, CONTENT, PRINTED = "an-argument-in-confidence", "content-of-a-secret-file", "what-the-program-says"
PROGRAM = """
def shout(text: str, path: str) -> str:
    print("".join(["what-", "the-program-", "says"]))
    return text.upper() + open(path).read().upper()
"""
MIDDLE = str(Path(__file__).with_name("middle.py"))
# What the client's exit code is, and the trick; another program is one of the same functions.
PLAYED = {
    "relay": (25, ""),
    "replay": (25, ""),
    "relay another enclave's evidence": (25, "the same program"),
    "divert": (24, "another program"),
    "reflect as evidence": (20, ""),
    "reflect messages": (11, ""),
    "reflect bytes": (11, ""),
}


@pytest.fixture(scope="module")
def hosts() -> Iterator[Network]:
    if why := network.missing("ip"):
        pytest.skip(why)
    with network.with_a_middle() as made:
        yield made


@contextmanager
def started(command: list[str], cwd: Path) -> Iterator[str]:
    """HOST:PORT that a process says at first; it is interrupted at the end."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=cwd) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[-1]
            process.send_signal(signal.SIGTERM)
            process.wait(80)
        finally:
            process.kill()


class Play:
    """One client whose enclave's proxy server is behind a man in the middle."""

    def __init__(self, hosts: Network, folder: Path, trick: str, program: str = "program.py") -> None:
        (folder / "program.py").write_text(PROGRAM)
        (folder / "another.py").write_text(PROGRAM.replace("shout", "whisper"))
        (folder / "secret-file").write_text(CONTENT)
        self.folder, self.record = folder, folder / "record"
        # When the client has refused, its enclave waits for it once more: for as long as its grace.
        proxy = ["-m", "adyton.cli", "proxy", "--listen", f"{SERVER}:0", "--insecure", "--grace", "0.2"]
        with ExitStack() as stack:
            target = stack.enter_context(started(hosts.server.python(*proxy), folder))
            other = stack.enter_context(started(hosts.server.python(*proxy), folder)) if TRICKS[trick][1] else target
            middle = hosts.router.python(MIDDLE, trick, f"{INSIDE}:0", target, other, program, str(self.record))
            on = stack.enter_context(started(middle, folder))
            self.done = subprocess.run(
                hosts.client.python(
                    *("-m", "adyton.cli", "call", "program.py", "shout", ARGUMENT, "secret-file"),
                    *("--allow-read", "secret-file", "--on", f"grpc://{on}", "--allow-sim", *self.policy()),
                ),
                capture_output=True,
                text=True,
                timeout=100,
                cwd=folder,
                check=False,
            )

    def policy(self) -> list[str]:
        return []

    def recorded(self) -> bytes:
        return self.record.read_bytes()


class PinnedPlay(Play):
    """The client wants an enclave of one machine."""

    def policy(self) -> list[str]:
        (self.folder / "policy.toml").write_text(
            '[expect]\nplatforms = ["sim"]\ndebug = true\nmachines = ["the-right-one"]\n'
        )
        return ["--policy", "policy.toml"]


def secrets_of(folder: Path) -> list[bytes]:
    """In every spelling that a program might send them in."""
    plain = [text.encode() for text in (ARGUMENT, CONTENT, PRINTED)]
    plain += [each.upper() for each in plain] + [b"secret-file", os.fsencode(str(folder))]
    spelt = list(plain)
    for each in plain:
        spelt += [each.hex().encode(), each.hex().upper().encode()]
        for shift in range(3):  # wherever it begins in what is encoded
            spelt.append(base64.b64encode(bytes(shift) + each)[4 * (shift > 0) : -4])
    return spelt


def test_what_is_looked_for_would_be_found(tmp_path):
    for cut in range(3):
        text = base64.b64encode(b"x" * cut + ARGUMENT.encode() + b"rest")
        assert any(each in text for each in secrets_of(tmp_path))


def test_a_man_who_records_everything_holds_the_image_and_no_secret(hosts, tmp_path):
    play = Play(hosts, tmp_path, "record")
    assert (play.done.returncode, play.done.stdout) == (0, f'"{(ARGUMENT + CONTENT).upper()}"\n'), play.done.stderr
    assert PRINTED in play.done.stderr
    recorded = play.recorded()
    assert b"def shout" in recorded  # the image is public, and what is in the clear is seen
    assert len(recorded) > 5_000
    assert [each for each in secrets_of(tmp_path) if each in recorded] == []


@pytest.mark.parametrize("trick", PLAYED)
def test_the_client_refuses_and_has_told_no_secret(hosts, tmp_path, trick):
    code, elsewhere = PLAYED[trick]
    play = Play(hosts, tmp_path, trick, "another.py" if elsewhere == "another program" else "program.py")
    assert play.done.returncode == code, play.done.stderr
    assert play.done.stdout == ""
    assert PRINTED not in play.done.stderr
    recorded = play.recorded()
    assert b"def shout" in recorded
    assert [each for each in secrets_of(tmp_path) if each in recorded] == []


def test_a_client_that_names_its_machine_is_not_diverted_to_the_same_image_elsewhere(hosts, tmp_path):
    play = PinnedPlay(hosts, tmp_path, "divert")
    assert play.done.returncode == 24, play.done.stderr
    assert "machine" in play.done.stderr
    assert [each for each in secrets_of(tmp_path) if each in play.recorded()] == []
