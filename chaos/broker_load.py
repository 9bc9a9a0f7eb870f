"""`make chaos-broker`: a broker under load, with all kinds of wrong evidence among the right, killed at random moments.

    python chaos/broker_load.py [--seconds 60] [--seed 1] [--clients 8] [--kills 20]

Clients ask at the same time, each again and again with something else: the right evidence; evidence of another image, signer or version, in debug, or for
another secret; of the right identity, but signed by another key; shown before on another connection; bound to something else; real evidence whose
certificates have expired (where there is some: ADYTON_VECTORS); none at all. The broker is killed (SIGKILL) and started again. Violations:

    a secret that came to a client whom it is not for, or another secret than was asked for
    a log that is not whole, after any kill, or that has been taken from
    a secret that came to a client, and is not in the log; or one in the log that was released to whom it is not for
    no right client was served, or no wrong one refused

Exit status 1 after any violation.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from adyton.attestation import sim
from adyton.attestation.evidence import seal
from adyton.attestation.expectation import Expectation
from adyton.attestation.identity import EnclaveIdentity
from adyton.broker.asking import Asking
from adyton.broker.audit import verify_log
from adyton.broker.records import Decided, Reader, lines_of
from adyton.crypto.digest import digest_of
from adyton.crypto.keys import PublicKey
from adyton.errors import AdytonError

OURS, OTHER, RUNTIME = ("sha256:" + each * 64 for each in "abc")
NAMES = ("database", "signing", "third")
RIGHT = EnclaveIdentity("sim", OURS, OURS, product_id=1, security_version=3, debug=False, runtime=RUNTIME, machine="")
_START_SECONDS = 30.0

Attest = Callable[[EnclaveIdentity, bytes], bytes]


class Broker:
    """One that is started in a folder, on one port all its lives long."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self.secrets = {name: os.urandom(32).hex().encode() for name in NAMES}
        text = "[limits]\nseconds = 10\n"
        for number, (name, secret) in enumerate(self.secrets.items(), 1):
            path = folder / f"{name}.secret"
            path.write_bytes(secret)
            path.chmod(0o600)
            text += f'[secret.{name}]\nfile = "{path.name}"\n[secret.{name}.expect]\nplatforms = ["sim", "nitro"]\n'
            text += f'signer = ["{OURS}"]\nproduct_id = {number}\nmin_version = 3\nruntime = ["{RUNTIME}"]\n'
        (folder / "broker.toml").write_text(text)
        self.log = folder / "broker.log"
        self.process: subprocess.Popen[str] | None = None
        self.key = ""
        self.said = ""

    def start(self, *options: str) -> None:
        """And wait until it listens. RuntimeError: it does not."""
        command = [sys.executable, "-m", "adyton.cli", "broker", "--config", str(self.folder / "broker.toml")]
        with (self.folder / "said").open("a") as said:
            self.process = subprocess.Popen(
                [*command, "--listen", f"127.0.0.1:{self.port}", *options],
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.said = (self.folder / "said").read_text()
        if not line.startswith("adyton broker listening on "):
            raise RuntimeError(f"the broker does not start: {self.said}")
        self.port = int(line.rpartition(":")[2])
        self.key = self.said.rpartition("key ")[2].split()[0]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Its exit status."""
        assert self.process is not None
        assert self.process.stdout is not None
        self.process.send_signal(number)
        status = self.process.wait(_START_SECONDS)
        self.process.stdout.close()
        return status

    @property
    def public_key(self) -> PublicKey:
        """Of the log."""
        return PublicKey.load(f"{self.log}.key.pub")


def ask(broker: Broker, name: str, identity: EnclaveIdentity, attest: Attest) -> bytes | None:
    """The secret, or None: refused. AdytonError, OSError: there was no answer."""
    asking = Asking(name, [broker.key], identity.digest())
    with socket.create_connection(("127.0.0.1", broker.port), 10) as sock:
        while asking.answer is None:
            sock.sendall(asking.data_to_send())
            asking.receive(sock.recv(1 << 15))
            if asking.wanted is not None:
                asking.provide(attest(identity, asking.wanted.report_data))
    return None if asking.secret is None else bytes(asking.secret)


def of_product(name: str, **changes: object) -> EnclaveIdentity:
    """The identity that is given that secret, changed."""
    return msgspec.structs.replace(RIGHT, product_id=NAMES.index(name) + 1, **changes)


def forged(identity: EnclaveIdentity, report_data: bytes) -> bytes:
    """Evidence as the simulation makes it, signed by a key of nobody's."""
    claims = msgspec.json.encode(sim.SimulatedClaims(identity, report_data))
    return seal("sim", sim.SimulatedBody(claims, Ed25519PrivateKey.generate().sign(claims)))


def expired() -> list[bytes]:
    """Real evidence whose certificates are no longer valid."""
    folder = Path(os.environ.get("ADYTON_VECTORS") or Path(__file__).parents[2] / "shared" / "vectors")
    return [
        path.read_bytes() for path in folder.glob("nitro-*/test-data/beta/valid-*") if path.stat().st_size < 1 << 16
    ]


@dataclass
class Load:
    """What the clients do, and what came of it."""

    broker: Broker
    seed: int
    over: threading.Event = field(default_factory=threading.Event)
    counts: Counter[str] = field(default_factory=Counter)
    received: list[tuple[str, str]] = field(default_factory=list)  # digest of the evidence, name
    violations: list[str] = field(default_factory=list)
    shown: list[bytes] = field(default_factory=list)  # right evidence of earlier connections

    def client(self, number: int) -> None:
        """One, until it is over."""
        draw = random.Random(self.seed * 1000 + number)
        stale = expired()
        while not self.over.is_set():
            name = draw.choice(NAMES)
            kinds: dict[str, Callable[[], tuple[str, EnclaveIdentity, Attest]]] = {
                "right": lambda name=name: (name, of_product(name), sim.attest),
                "other signer": lambda name=name: (name, of_product(name, signer=OTHER), sim.attest),
                "older": lambda name=name: (name, of_product(name, security_version=2), sim.attest),
                "debug": lambda name=name: (name, of_product(name, debug=True), sim.attest),
                "other runtime": lambda name=name: (name, of_product(name, runtime=OTHER), sim.attest),
                "of another secret": lambda name=name: (name, of_product(NAMES[NAMES.index(name) - 1]), sim.attest),
                "of no secret": lambda: ("absent", RIGHT, sim.attest),
                "forged": lambda name=name: (name, of_product(name), forged),
                "malformed": lambda name=name: (name, of_product(name), lambda *_: draw.randbytes(300)),
                "bound elsewhere": lambda name=name: (
                    name,
                    of_product(name),
                    lambda who, data: sim.attest(who, data[::-1]),
                ),
            }
            if self.shown:
                kinds["replayed"] = lambda name=name: (name, of_product(name), lambda *_: draw.choice(self.shown))
            if stale:
                kinds["expired"] = lambda name=name: (name, of_product(name), lambda *_: draw.choice(stale))
            kind = "right" if draw.random() < 0.4 else draw.choice(list(kinds))
            self._ask(kind, *kinds[kind]())

    def _ask(self, kind: str, name: str, identity: EnclaveIdentity, attest: Attest) -> None:
        made: list[bytes] = []

        def attested(who: EnclaveIdentity, report_data: bytes) -> bytes:
            made.append(attest(who, report_data))
            return made[-1]

        try:
            secret = ask(self.broker, name, identity, attested)
        except AdytonError:  # its evidence is no good, or the broker was killed
            self.counts[f"{kind}: ended"] += 1
            return
        except OSError:
            self.counts["unreachable"] += 1
            self.over.wait(0.05)
            return
        if secret is None:
            self.counts[f"{kind}: refused"] += 1
            if kind == "right":
                self.violations.append(f"the right evidence for {name} was refused")
            return
        self.counts[f"{kind}: given"] += 1
        self.received.append((digest_of(made[-1]), name))
        if kind == "right":
            self.shown.append(made[-1])
        else:
            self.violations.append(f"a secret was given to evidence that is {kind}")
        if secret != self.broker.secrets.get(name):
            self.violations.append(f"another secret than {name} was given for it")

    def look(self, before: bytes) -> bytes:
        """At the log: is it whole, and does it only grow. Its content."""
        report = verify_log(str(self.broker.log), self.broker.public_key)
        self.violations += [f"the log: {each}" for each in report.problems]
        content = self.broker.log.read_bytes()
        if not content.startswith(before):
            self.violations.append("the log has lost what was in it")
        return content

    def compare(self, content: bytes) -> None:
        """What came, and what the log says."""
        reader = Reader(self.broker.public_key)
        released = Counter[tuple[str, str]]()
        for line in lines_of([content]):
            record = reader.read(line)
            if isinstance(record, Decided) and record.decision == "released":
                released[record.evidence, record.secret] += 1
                number = NAMES.index(record.secret) + 1
                expect = Expectation(
                    platforms=["sim"], signer=[OURS], product_id=number, min_version=3, runtime=[RUNTIME]
                )
                if record.identity is None or expect.compare(record.identity, record.tcb) or record.findings:
                    self.violations.append(f"record {record.number} is of a release that its policy does not allow")
        for key, count in Counter(self.received).items():
            if released[key] < count:
                self.violations.append(f"{key[1]} was given and is not in the log")


def run(seconds: float, seed: int, clients: int, kills: int) -> int:
    """The exit status."""
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        broker = Broker(Path(name))
        broker.start()
        load = Load(broker, seed)
        threads = [threading.Thread(target=load.client, args=(number,)) for number in range(clients)]
        for thread in threads:
            thread.start()
        content = b""
        try:
            for _ in range(kills):
                time.sleep(draw.uniform(0.2, 1.8) * seconds / (kills + 1))
                broker.stop(signal.SIGKILL)
                content = load.look(content)
                broker.start()
            time.sleep(seconds / (kills + 1))
        finally:
            load.over.set()
            for thread in threads:
                thread.join(60)
            status = broker.stop()
        if status:
            load.violations.append(f"the broker ended with status {status}")
        load.compare(load.look(content))
        given, refused = (
            load.counts["right: given"],
            sum(n for kind, n in load.counts.items() if "right" not in kind and ("refused" in kind or "ended" in kind)),
        )
        if not given or not refused:
            load.violations.append(f"{given} right clients were served, and {refused} wrong ones refused")
        report = verify_log(str(broker.log), broker.public_key)
    print(
        f"{report.head.number} records, {report.healed} healed; "
        + ", ".join(f"{k} {n}" for k, n in sorted(load.counts.items()))
    )
    if not expired():
        print("NO EXPIRED EVIDENCE HERE: there are no vectors")
    for violation in dict.fromkeys(load.violations):
        print(f"VIOLATION: {violation} (--seed {seed})")
    return bool(load.violations)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--kills", type=int, default=20)
    given = parser.parse_args()
    sys.exit(run(given.seconds, given.seed, given.clients, given.kills))


if __name__ == "__main__":
    main()
