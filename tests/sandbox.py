"""Enclaves with the stand-in of sandbox_probe.py for a supervisor, for tests that talk to both of an enclave's processes."""

import json
import os
import select
import textwrap
from contextlib import contextmanager

from adyton.handing_over import connect
from adyton.runtime.launch import LaunchRequest, Zygote
from adyton.runtime.process.namespaces import UID_BASE

PROBE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sandbox_probe.py")
PATIENCE = 60.0  # seconds until a test gives up on something that takes milliseconds


def start_zygote(store):
    return Zygote.start(str(store), supervisor="sandbox_probe:run", additions={"sandbox_probe.py": PROBE})


class CodeError(Exception):
    """What the code raised there: "Type: text"."""


class Probe:
    """One enclave, in which functions' bodies are run: `guest` and `supervisor` give what they return."""

    def __init__(self, zygote, options):
        self.enclave = zygote.launch(LaunchRequest("sha256:00", [json.dumps(options)]))
        self.pid = self.enclave.pid
        self.socket = connect(self.enclave.socket)
        self._lines = self.socket.makefile("rwb")

    def guest(self, code):
        return self._run("guest", code)

    def supervisor(self, code):
        return self._run("supervisor", code)

    def _run(self, where, code):
        answer = self.ask(where, code)
        if "error" in answer:
            raise CodeError(answer["error"])
        return answer["result"]

    def ask(self, where, code):
        line = json.dumps({"where": where, "code": textwrap.dedent(code).strip()})
        self._lines.write(line.encode() + b"\n")
        self._lines.flush()
        return self.answer()

    def answer(self):
        line = self._lines.readline()
        return json.loads(line) if line else {"error": "EOF"}

    def close(self):
        try:
            self._lines.close()
            self.socket.close()
        except OSError:
            pass
        self.enclave.close()


@contextmanager
def enclave(zygote, **options):
    probe = Probe(zygote, options)
    try:
        yield probe
    finally:
        probe.close()


def children(pid):
    """The processes that `pid` started, and theirs, as the machine numbers them."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    parents[int(name)] = int(file.read().rpartition(")")[2].split()[1])
            except OSError:
                continue  # it ended meanwhile
    found = {pid}
    while more := {each for each, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def guest_of(supervisor):
    """The process that the program runs in: of the supervisor's children not the init."""
    (guest,) = [pid for pid in children(supervisor) if status(pid)["NSpid"].split()[-1] == "2"]
    return guest


def alive(pids):
    """Those of the processes that have not ended."""
    found = set()
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] not in "ZX":
                    found.add(pid)
        except OSError:
            continue
    return found


def wait_until_ended(pids):
    """Wait on the processes' own descriptors until all have ended; those that do not."""
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            continue
        try:
            poller = select.poll()
            poller.register(descriptor, select.POLLIN)
            poller.poll(PATIENCE * 1000)
        finally:
            os.close(descriptor)
    return alive(pids)


def own_user(pid):
    return UID_BASE + pid if os.geteuid() == 0 else os.geteuid()


def status(pid):
    """/proc/PID/status as a dictionary."""
    with open(f"/proc/{pid}/status") as file:
        return dict(line.rstrip("\n").split(":\t", 1) for line in file)
