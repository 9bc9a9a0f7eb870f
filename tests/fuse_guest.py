"""Run as a program: a guest whose root is a FUSE mount that the parent serves. Arguments: a socket, a mount point, the code to run.

Sends the parent its process id in the parent's numbering, then b"mounted" with the /dev/fuse descriptor, or b"cannot: …" in place of
either; waits for a byte; runs the code with the mount as its root; prints what the code left in `result` as JSON.
"""

import ctypes
import errno
import json
import mmap
import os
import platform
import select
import shutil
import signal
import socket
import sqlite3
import stat
import sys
import tempfile
import threading
import time
import traceback

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID = 0x20000, 0x10000000, 0x20000000
MS_NOSUID_NODEV, MS_PRIVATE_REC, MNT_DETACH = 2 | 4, 0x4000 | 1 << 18, 2
PIVOT_ROOT = 41 if platform.machine() == "aarch64" else 155
libc = ctypes.CDLL(None, use_errno=True)


def call(result: int, what: str) -> None:
    if result:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def attempt(function, *arguments, **keywords):
    """What it returns, or the name of the errno that it fails with."""
    try:
        return function(*arguments, **keywords)
    except OSError as error:
        return errno.errorcode[error.errno]


def enter(parent: socket.socket, mount_point: str) -> None:
    uid, gid = os.geteuid(), os.getegid()
    call(libc.unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"1000 {uid} 1"), ("gid_map", f"1000 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    read, write = os.pipe()
    child = os.fork()
    if child:
        parent.send(str(child).encode())
        os.close(write)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    os.close(write)
    os.read(read, 1)  # until the process id has been sent
    os.close(read)
    call(libc.mount(None, b"/", None, MS_PRIVATE_REC, None), "mount private")
    fuse = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={fuse},rootmode=40000,user_id=1000,group_id=1000".encode()
    call(libc.mount(b"adyton", mount_point.encode(), b"fuse", MS_NOSUID_NODEV, options), "mount fuse")
    socket.send_fds(parent, [b"mounted"], [fuse])
    os.close(fuse)
    assert parent.recv(1) == b"g"
    os.chdir(mount_point)
    call(libc.syscall(PIVOT_ROOT, b".", b"."), "pivot_root")
    call(libc.umount2(b".", MNT_DETACH), "umount")
    os.chdir("/")


def main() -> None:
    parent = socket.socket(fileno=int(sys.argv[1]))
    try:
        enter(parent, sys.argv[2])
    except OSError as error:
        parent.send(f"cannot: {error}".encode())
        os._exit(0)
    names = {"attempt": attempt, "parent": parent, "result": None}
    modules = (errno, mmap, os, select, shutil, signal, socket, sqlite3, stat, tempfile, threading, time)
    names.update({module.__name__: module for module in modules})
    try:
        exec(sys.argv[3], names)
    except BaseException as error:  # noqa: BLE001  it is the result
        names["result"] = "".join(traceback.format_exception(error))
    sys.stdout.write(json.dumps(names["result"]) + "\n")
    sys.stdout.flush()
    os._exit(0)


main()
