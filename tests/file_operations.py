"""A program that does to a folder what it is told, operation by operation: run in an enclave, and run on the client, to compare.

`perform(root, text)`: `text` is a JSON list of operations [name, argument…]; the answer is a JSON list of what each gave, or the name
of its errno. Open files are in numbered slots, which are kept from one call to the next. `end(root)` closes them.
"""

import ctypes
import errno
import fcntl
import json
import mmap
import os
import stat

libc = ctypes.CDLL(None, use_errno=True)
SLOTS: dict = {}
LONG_AGO = 10**12  # nanoseconds: times before it were set by an operation
FLAGS = {
    name: getattr(os, name) for name in ("O_RDONLY", "O_WRONLY", "O_RDWR", "O_CREAT", "O_EXCL", "O_TRUNC", "O_APPEND")
}
FLAGS |= {name: getattr(os, name) for name in ("O_DIRECTORY", "O_NOFOLLOW", "O_SYNC", "O_DSYNC", "O_PATH", "O_TMPFILE")}


def flags_of(names):
    return sum(FLAGS[name] for name in names)


def shown(status):
    """What two equal files have in common."""
    kind = stat.S_IFMT(status.st_mode)
    size = status.st_size if kind == stat.S_IFREG else 0
    links = status.st_nlink if kind == stat.S_IFREG else 0
    modified = status.st_mtime_ns if status.st_mtime_ns < LONG_AGO else 0
    return [kind, stat.S_IMODE(status.st_mode), size, links, modified]


def checked(result):
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


class Folder:
    def __init__(self, root):
        self.root = root
        self.slots = {}

    def path(self, name):
        return f"{self.root}/{name}" if name else self.root

    def slot(self, number):
        return self.slots.get(number, 9999)

    def open(self, number, name, flags, mode):
        self.close(number)
        self.slots[number] = os.open(self.path(name), flags_of(flags), mode)

    def close(self, number):
        if number in self.slots:
            os.close(self.slots.pop(number))

    def read(self, number, size):
        return os.read(self.slot(number), size).hex()

    def pread(self, number, size, offset):
        return os.pread(self.slot(number), size, offset).hex()

    def write(self, number, text):
        return os.write(self.slot(number), text.encode())

    def pwrite(self, number, text, offset):
        return os.pwrite(self.slot(number), text.encode(), offset)

    def lseek(self, number, offset, whence):
        if stat.S_ISDIR(os.fstat(self.slot(number)).st_mode):
            return None  # where a directory ends, each file system says as it likes
        return os.lseek(self.slot(number), offset, whence)

    def ftruncate(self, number, size):
        os.ftruncate(self.slot(number), size)

    def truncate(self, name, size):
        os.truncate(self.path(name), size)

    def fallocate(self, number, mode, offset, size):
        checked(libc.fallocate(self.slot(number), mode, ctypes.c_int64(offset), ctypes.c_int64(size)))

    def fsync(self, number):
        os.fsync(self.slot(number))

    def fdatasync(self, number):
        os.fdatasync(self.slot(number))

    def fstat(self, number):
        return shown(os.fstat(self.slot(number)))

    def stat(self, name):
        return shown(os.stat(self.path(name)))

    def lstat(self, name):
        return shown(os.lstat(self.path(name)))

    def mkdir(self, name, mode):
        os.mkdir(self.path(name), mode)

    def mknod(self, name, mode):
        os.mknod(self.path(name), mode)

    def rmdir(self, name):
        os.rmdir(self.path(name))

    def unlink(self, name):
        os.unlink(self.path(name))

    def rename(self, name, target):
        os.rename(self.path(name), self.path(target))

    def renameat2(self, name, target, flags):
        source, destination = (os.fsencode(self.path(each)) for each in (name, target))
        checked(libc.renameat2(-100, source, -100, destination, flags))

    def link(self, name, target):
        os.link(self.path(name), self.path(target), follow_symlinks=False)

    def link_open(self, number, target):
        directory = os.open(self.root, os.O_RDONLY)
        try:  # with a directory, so that it is a linkat that follows
            os.link(f"/proc/self/fd/{self.slot(number)}", target, dst_dir_fd=directory, follow_symlinks=True)
        finally:
            os.close(directory)

    def symlink(self, target, name):
        os.symlink(target, self.path(name))

    def readlink(self, name):
        return os.readlink(self.path(name))

    def chmod(self, name, mode):
        os.chmod(self.path(name), mode)

    def fchmod(self, number, mode):
        os.fchmod(self.slot(number), mode)

    def utime(self, name, accessed, modified):
        os.utime(self.path(name), ns=(accessed, modified))

    def futime(self, number, modified):
        os.utime(self.slot(number), ns=(modified, modified))

    def chown(self, name):
        os.chown(self.path(name), -1, -1)

    def setxattr(self, name, key, text, flags):
        os.setxattr(self.path(name), key, text.encode(), flags)

    def fsetxattr(self, number, key, text):
        os.setxattr(self.slot(number), key, text.encode())

    def getxattr(self, name, key):
        return os.getxattr(self.path(name), key).hex()

    def listxattr(self, name):
        return sorted(key for key in os.listxattr(self.path(name)) if key.startswith("user."))

    def flistxattr(self, number):
        return sorted(key for key in os.listxattr(self.slot(number)) if key.startswith("user."))

    def removexattr(self, name, key):
        os.removexattr(self.path(name), key)

    def listdir(self, name):
        with os.scandir(self.path(name)) as entries:
            return sorted([entry.name, entry.is_dir(follow_symlinks=False), entry.is_symlink()] for entry in entries)

    def access(self, name):
        return os.access(self.path(name), os.F_OK)

    def copy(self, number, offset, target, target_offset, size):
        return os.copy_file_range(self.slot(number), self.slot(target), size, offset, target_offset)

    def sendfile(self, number, offset, target, size):
        return os.sendfile(self.slot(target), self.slot(number), offset, size)

    def flock(self, number, kind):
        fcntl.flock(self.slot(number), kind | fcntl.LOCK_NB)

    def lockf(self, number, kind, size, start):
        fcntl.lockf(self.slot(number), kind | (0 if kind == fcntl.LOCK_UN else fcntl.LOCK_NB), size, start)

    def map(self, number, text):
        data = text.encode()
        with mmap.mmap(self.slot(number), len(data)) as memory:
            memory[: len(data)] = data
            memory.flush()

    def map_private(self, number, size):
        with mmap.mmap(self.slot(number), size, access=mmap.ACCESS_COPY) as memory:
            memory[:1] = b"?"
            return memory[1:size].hex()


def perform(root: str, text: str) -> str:
    folder = SLOTS.setdefault(root, Folder(root))
    answers = []
    for name, *arguments in json.loads(text):
        try:
            answers.append(getattr(folder, name)(*arguments))
        except OSError as error:
            answers.append(errno.errorcode[error.errno])
        except (ValueError, OverflowError) as error:
            answers.append(type(error).__name__)
    return json.dumps(answers)


def begin(root: str) -> None:
    os.mkdir(root)


def end(root: str) -> None:
    folder = SLOTS.pop(root, None)
    for number in list(folder.slots) if folder else ():
        folder.close(number)
