"""A stand-in for the supervisor's main, laid into a zygote by the tests: runs code that a test sends, in supervisor or guest.

The test's end of the stream sends JSON lines {"where": "supervisor" | "guest", "code": text}; the code is a function's body, whose
result comes back as {"result": …} or {"error": text}. The FUSE root has the mount points, and nothing else.
"""

import errno
import json
import os
import select
import socket
import struct
import sys

from adyton.handing_over import accept
from adyton.runtime.process.confine import confine_supervisor
from adyton.runtime.process.guest_start import LISTENER, Limits, start_guest
from adyton.runtime.process.supervisor.fetching import Fetcher
from adyton.runtime.process.supervisor.notifications import Listener
from adyton.runtime.process.supervisor.system_calls import SystemCalls

NAMES = [
    "bin",
    "dev",
    "enclave",
    "etc",
    "lib",
    "lib32",
    "lib64",
    "libx32",
    "opt",
    "proc",
    "sbin",
    "tmp",
    "usr",
    "client",
]
TREE = {
    1: dict(zip(NAMES, range(2, 100), strict=False)),
    NAMES.index("opt") + 2: {"adyton": 100},
    NAMES.index("dev") + 2: {"stdin": 101},
}
FOREVER = 1 << 32


def _attributes(node):
    mode = 0o100400 if node == 101 else 0o40755
    return struct.pack("<6Q10I", node, 0, 0, 0, 0, 0, 0, 0, 0, mode, 2, 1000, 1000, 0, 4096, 0)


def answer(message):
    """The answer to one FUSE request; None where none is due."""
    _, operation, unique, node, _, _, _, _ = struct.unpack_from("<IIQQIIII", message)
    error, out = 0, b""
    if operation == 26:  # INIT
        major, minor, ahead, _ = struct.unpack_from("<IIII", message, 40)
        out = struct.pack("<IIIIHHIIHHI7I", major, min(minor, 31), ahead, 1, 16, 12, 1 << 17, 1, 32, 0, 0, *[0] * 7)
    elif operation == 1:  # LOOKUP
        child = TREE.get(node, {}).get(message[40:-1].decode())
        if child is None:
            error = errno.ENOENT
        else:
            out = struct.pack("<4Q2I", child, 0, FOREVER, FOREVER, 0, 0) + _attributes(child)
    elif operation == 3:  # GETATTR
        out = struct.pack("<QII", FOREVER, 0, 0) + _attributes(node)
    elif operation in (14, 27):  # OPEN, OPENDIR
        out = struct.pack("<QII", 0, 0, 0)
    elif operation == 28:  # READDIR
        (offset,) = struct.unpack_from("<Q", message, 48)
        if offset == 0:
            for name, child in TREE.get(node, {}).items():
                entry = struct.pack("<QQII", child, child, len(name), 4) + name.encode()
                out += entry.ljust((len(entry) + 7) // 8 * 8, b"\0")
    elif operation in (15, 18, 29):  # READ: the end; RELEASE, RELEASEDIR
        pass
    elif operation in (2, 42):  # FORGET, BATCH_FORGET
        return None
    else:
        error = errno.ENOSYS
    return struct.pack("<IiQ", 16 + len(out), -error, unique) + (b"" if error else out)


def evaluate(code, names):
    try:
        exec("def _probe():\n" + "".join(f"    {line}\n" for line in code.splitlines()), names)
        result = {"result": names["_probe"]()}
        return json.dumps(result)
    except BaseException as error:  # noqa: BLE001 - the test judges it
        return json.dumps({"error": f"{type(error).__name__}: {error}"})


def guest_main(side):
    names = {"finish": side.finish, "control": side.control}
    while message := side.control.recv(1 << 16):
        side.control.send(evaluate(message.decode(), names).encode())


def unpack(layer, directory):
    name, _, text = layer.partition(b"\n")
    with open(os.path.join(directory, name.decode()), "wb") as file:
        file.write(text)


def run(sock, request, report):
    """See adyton.runtime.process.supervisor.main.run; `request.signatures` may hold options as JSON."""
    options = json.loads(request.signatures[0]) if request.signatures else {}
    if "raise" in options:
        import adyton.errors

        raise getattr(adyton.errors, options["raise"])("as asked for")
    if "die" in options:
        os._exit(3)
    layer = b"hello.py\nGREETING = 'hello'\n"
    limits = Limits(**options.get("limits", {}))
    started = start_guest(guest_main, [layer], unpack, limits, options.get("programs", []))
    confine_supervisor(started.proc)
    _serve(sock, started, report)


def _serve(control, started, report):
    poller = select.poll()
    for each in (control, started.control, started.fuse, started.pidfd, started.stdout, started.stderr):
        poller.register(each, select.POLLIN)
    names = {"started": started, "output": b"", "os": os, "refused": []}
    calls = listener = None
    sock = lines = None
    ready = False
    while True:
        for descriptor, _ in poller.poll():
            if descriptor == started.fuse:
                try:
                    reply = answer(os.read(descriptor, 1 << 18))
                    if reply is not None:
                        os.write(descriptor, reply)
                except FileNotFoundError:
                    pass
                except OSError:
                    poller.unregister(descriptor)
            elif calls is not None and descriptor == listener.fileno():
                calls.receive()
            elif descriptor == started.control.fileno():
                message, descriptors, _, _ = socket.recv_fds(started.control, 1 << 18, 1)
                if message == LISTENER:
                    listener = Listener(descriptors[0], Fetcher(started.pid))
                    calls = SystemCalls(listener, {}, lambda call: names["refused"].append([call.name, call.errno]))
                    poller.register(listener, select.POLLIN)
                elif not message:
                    poller.unregister(descriptor)
                elif not ready:
                    report(None if message == b"ready" else message.decode())
                    ready = True
                else:
                    lines.write(message + b"\n")
                    lines.flush()
            elif descriptor == control.fileno():
                sock = accept(control)
                if sock is None:
                    sys.exit(0)
                lines = sock.makefile("rwb")
                names["sock"] = sock
                poller.register(sock, select.POLLIN)
            elif descriptor == started.pidfd:
                if lines is not None:
                    status = os.waitid(os.P_PIDFD, descriptor, os.WEXITED).si_status
                    lines.write(json.dumps({"ended": status}).encode() + b"\n")
                    lines.flush()
                sys.exit(0)
            elif sock is not None and descriptor == sock.fileno():
                line = lines.readline()
                if not line:
                    sys.exit(0)
                asked = json.loads(line)
                if asked["where"] == "guest":
                    started.control.send(asked["code"].encode())
                else:
                    lines.write(evaluate(asked["code"], names).encode() + b"\n")
                    lines.flush()
            else:
                data = os.read(descriptor, 1 << 16)
                names["output"] += data
                if not data:
                    poller.unregister(descriptor)
