"""inotify(7) by its system calls, for programs in enclaves and beside them: SOURCE is run by both."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

SOURCE = '''
import ctypes, errno, json, os, select, struct

libc = ctypes.CDLL(None, use_errno=True)
NAMES = {
    0x1: "ACCESS", 0x2: "MODIFY", 0x4: "ATTRIB", 0x8: "CLOSE_WRITE", 0x10: "CLOSE_NOWRITE", 0x20: "OPEN", 0x40: "MOVED_FROM",
    0x80: "MOVED_TO", 0x100: "CREATE", 0x200: "DELETE", 0x400: "DELETE_SELF", 0x800: "MOVE_SELF", 0x2000: "UNMOUNT",
    0x4000: "OVERFLOW", 0x8000: "IGNORED", 0x40000000: "ISDIR",
}
MASKS = {name: bit for bit, name in NAMES.items()} | {
    "ONLYDIR": 0x01000000, "DONT_FOLLOW": 0x02000000, "EXCL_UNLINK": 0x04000000, "MASK_CREATE": 0x10000000,
    "MASK_ADD": 0x20000000, "ONESHOT": 0x80000000, "ALL": 0xFFF,
}
LAST = "last one"

def called(result):
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result

def parsed(data):
    found, at = [], 0
    while at < len(data):
        watch, mask, cookie, length = struct.unpack_from("iIII", data, at)
        name = data[at + 16 : at + 16 + length].rstrip(b"\\0").decode("utf-8", "backslashreplace")
        found.append([watch, "|".join(each for bit, each in NAMES.items() if mask & bit), cookie, name])
        at += 16 + length
    return found

class Inotify:
    def __init__(self, flags=os.O_CLOEXEC):
        self.fd = called(libc.inotify_init1(flags))

    def watch(self, path, *names):
        mask = 0
        for name in names or ("ALL",):
            mask |= MASKS[name]
        return called(libc.inotify_add_watch(self.fd, os.fsencode(path), ctypes.c_uint32(mask)))

    def remove(self, watch):
        called(libc.inotify_rm_watch(self.fd, watch))

    def read(self):
        return parsed(os.read(self.fd, 65536))

    def until(self, *wanted):
        """All events there are, at least up to one of the names, or kinds, that are wanted."""
        found = []
        while not {word for event in found for word in (event[1], event[3])} & set(wanted) or select.select([self.fd], [], [], 0)[0]:
            assert select.select([self.fd], [], [], 60)[0], f"only {found}"
            found += self.read()
        return found

    def last(self, top):
        """All events of what was done before, in the watched directory `top` or elsewhere; moves are numbered."""
        os.mkdir(f"{top}/{LAST}")
        found = [event for event in self.until(LAST) if event[3] != LAST]
        os.rmdir(f"{top}/{LAST}")
        self.until("DELETE|ISDIR")
        cookies = {}
        for event in found:
            event[2] = cookies.setdefault(event[2], len(cookies) + 1) if event[2] else 0
        return found

    def close(self):
        os.close(self.fd)
'''


_SERVE = """
for line in sys.stdin:
    scope = dict(globals())
    exec(json.loads(line), scope)
    print(json.dumps(scope.get("result")), flush=True)
"""


class Local:
    """A program on this machine that does what a test says; to be closed."""

    def __init__(self) -> None:
        pipe = subprocess.PIPE
        program = f"import json, sys\n{SOURCE}\n{_SERVE}"
        self._process = subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe, text=True)

    def run(self, code: str, **values: object) -> object:
        """What the code leaves as `result`."""
        assignments = "".join(f"{name} = {value!r}\n" for name, value in values.items())
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(assignments + textwrap.dedent(code)), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()
