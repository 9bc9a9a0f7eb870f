"""What an enclave may do on its client's machine: lists written by the client's owner, empty by default.

A policy is made once, at load, and never changes. A path is allowed with all below it; it is resolved when the policy is made, and the
spelling given, the resolved path and those in between (a link that leads to a link) are all allowed. What a path may be used for:

    right    what it covers
    read     content, attributes, names in directories
    write    read, and change, create, delete, rename
    enter    attributes of directories (and links) that lead to an allowed path or to the working directory; no names, no content

Nothing covers the enclave's own names (adyton.hostcall.own_paths).
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from adyton.errors import UsageError
from adyton.hostcall import abi
from adyton.hostcall.client.paths import absolute, is_utf8, join, quoted, spellings, split, upwards, visible
from adyton.hostcall.environment import check_variable
from adyton.hostcall.own_paths import own_path

PathRight = Literal["read", "write"]
PathLike = str | os.PathLike[str]
_T = TypeVar("_T")

MAX_GRANTS = 1024  # what an enclave's layout takes

_HOST = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*\.?\Z"
)
_PORT = re.compile(r"[0-9]{1,5}\Z")


@dataclass(frozen=True)
class Grant:
    """A path, absolute and normalised, as the enclave may spell it, and the greatest right on it."""

    path: str
    right: PathRight


@dataclass(frozen=True)
class Resolved:
    """Allowed. `path`: where that name is on this machine, behind no symbolic link that was there when the policy was made.

    `target`: what the name led to then, if it was itself a symbolic link; else None.
    """

    path: str
    target: str | None = None


@dataclass(frozen=True)
class Denied:
    """Not allowed. `own`: the row of the enclave's own names that covers it, which no option changes; None elsewhere."""

    right: abi.Right
    subject: str
    own: str | None = None

    def __str__(self) -> str:
        """The line for standard error, without anything that a terminal would obey."""
        what = f"denied: {self.right} {visible(self.subject)}"
        if self.own is not None:
            return f"{what} ({self.own} is the enclave's own, never the client's)"
        return f"{what} (add --allow-{self.right} {quoted(self.subject)})"


@dataclass(frozen=True)
class Endpoint:
    """A row of `net` or `listen`: a host name or a network of addresses, and a port; None: every port."""

    host: str
    network: ipaddress.IPv4Network | ipaddress.IPv6Network | None
    port: int | None


@dataclass(frozen=True)
class _Place:
    """A spelling of an allowed path. `resolved`: what it leads to; `location`: where its last name is, not followed."""

    resolved: str
    location: str
    right: PathRight


class HostCallPolicy:
    """See the module; make one with `create`. Immutable and thread-safe."""

    def __init__(
        self,
        places: Mapping[str, _Place],
        working_directory: list[str],
        net: tuple[Endpoint, ...],
        listen: tuple[Endpoint, ...],
        env: tuple[str, ...],
        call: frozenset[str],
        container: str | None = None,
    ) -> None:
        self._places = dict(places)
        self._container = container
        self._enterable = {above for path in (*places, *working_directory) for above in upwards(path)}
        self.working_directory = working_directory[-1]
        self.net = net
        self.listen = listen
        self.env = env
        self.call = call
        if len(self.grants()) > MAX_GRANTS:
            raise UsageError(
                f"allow_read and allow_write name more than {MAX_GRANTS} paths (each spelling through a symbolic link counts); allow the "
                "folders that hold them"
            )

    @classmethod
    def create(
        cls,
        *,
        read: Iterable[PathLike] = (),
        write: Iterable[PathLike] = (),
        net: Iterable[str] = (),
        listen: Iterable[str] = (),
        env: Iterable[str] = (),
        call: Iterable[str] = (),
        base: str,
        working_directory: str | None = None,
        container: str | None = None,
    ) -> HostCallPolicy:
        """The policy of these lists; relative paths are below `base`, which is the working directory too unless that is given.

        `container`: the file, behind no link, in which the enclave's supervisor keeps sealed files; it is no path of its program's.

        UsageError for what no policy can allow (the enclave's own paths, variables that the loader obeys, the container) and for malformed entries.
        """
        if not os.path.isabs(base):
            raise UsageError(f"base is {base!r}; give the absolute path of the folder that relative paths are below")
        places: dict[str, _Place] = {}
        rights: tuple[tuple[PathRight, Iterable[PathLike]], ...] = (("read", read), ("write", write))
        for right, paths in rights:
            for path in _listed(f"allow_{right}", paths):
                _add_path(places, path, right, base)
        if container is not None:
            _check_apart(places, container)
        return cls(
            places,
            _resolve(absolute(working_directory or base, base, "working directory"), "working directory"),
            tuple(parse_net(entry) for entry in _listed("allow_net", net)),
            tuple(parse_listen(entry) for entry in _listed("allow_listen", listen)),
            tuple(check_variable(name) for name in _listed("allow_env", env)),
            frozenset(_check_function(name) for name in _listed("allow_call", call)),
            container,
        )

    def is_container(self, path: str) -> bool:
        """Whether that file holds the enclave's sealed files: its name is durable from the start."""
        return path == self._container

    def grants(self) -> list[Grant]:
        """Every spelling of every allowed path, for the enclave's layout; those that another covers as well are left out."""
        return [
            Grant(path, place.right)
            for path, place in sorted(self._places.items())
            if not self._covered(path, place.right)
        ]

    def _covered(self, path: str, right: PathRight) -> bool:
        above = (self._places.get(each) for each in upwards(path) if each != path)
        return any(place is not None and place.right in {right, "write"} for place in above)

    def resolve(self, path: str, right: PathRight) -> Resolved | Denied:
        """Where the enclave's `path` (absolute and normalised) is, if the policy gives `right` on it."""
        if path == self._container:
            return Resolved(path)
        own = own_path(path)
        if own is not None:
            return Denied(right, path, own)
        for above in upwards(path):
            place = self._places.get(above)
            if place is None or (right == "write" and place.right == "read"):
                continue
            if above != path:
                return Resolved(_rebase(path, above, place.resolved))
            return Resolved(place.location, None if place.location == place.resolved else place.resolved)
        return Denied(right, path)

    def enter(self, path: str) -> Resolved | Denied:
        """The same for attributes: what may be read, and the directories that lead there or to the working directory."""
        found = self.resolve(path, "read")
        if isinstance(found, Denied) and found.own is None and path in self._enterable:
            return Resolved(path)
        return found

    def allows_call(self, name: str) -> Denied | None:
        """None if the registered function `name` may be called."""
        return None if name in self.call else Denied("call", name)

    def environment(self, source: Mapping[str, str]) -> dict[str, str]:
        """The variables of `source` that the policy lets the enclave see."""
        return {name: source[name] for name in self.env if name in source}


def _rebase(path: str, above: str, resolved: str) -> str:
    below = path[len(above.rstrip("/")) :]
    return resolved.rstrip("/") + below or "/"


def _listed(name: str, entries: Iterable[_T]) -> Iterable[_T]:
    if isinstance(entries, str | bytes | os.PathLike):
        raise UsageError(f"{name} is {entries!r}; it must be a list: {name}=[{entries!r}]")
    return entries


def _resolve(path: str, where: str) -> list[str]:
    try:
        found = spellings(path)
    except OSError as error:
        raise UsageError(
            f"{where}: {visible(path)} is a circle of symbolic links; correct the links or the path"
        ) from error
    for spelling in found:
        if len(spelling) > abi.MAX_PATH:
            raise UsageError(f"{where}: {visible(path)} leads to a path of more than {abi.MAX_PATH} characters")
        if not is_utf8(spelling):
            raise UsageError(
                f"{where}: {visible(path)} leads to a path that is not UTF-8, which only names below an allowed folder may be: rename it"
            )
    return found


def _add_path(places: dict[str, _Place], path: PathLike, right: PathRight, base: str) -> None:
    where = f"allow_{right}"
    found = _resolve(absolute(path, base, where), where)
    for spelling in (found[0], found[-1]):
        own = own_path(spelling)
        if own is not None:
            leads = "" if spelling == os.fspath(path) else f" (it is {visible(spelling)})"
            raise UsageError(
                f"{where}: {visible(os.fspath(path))}{leads} cannot be the client's: {own} is the enclave's own. Leave it out; an "
                "enclave brings these files along"
            )
    for spelling in found:
        if own_path(spelling) is None:
            before = places.get(spelling)
            greatest = "write" if before is not None and before.right == "write" else right
            directory, name = split(spelling)
            location = spelling if spelling == "/" else join(spellings(directory)[-1], name)
            places[spelling] = _Place(found[-1], location, greatest)


def _check_apart(places: Mapping[str, _Place], container: str) -> None:
    """The host calls of the supervisor and of its program come alike: what the one may do with the container must be nothing that the other may ask for."""
    above = set(upwards(container))
    for path, place in sorted(places.items()):
        if place.resolved in above:
            raise UsageError(
                f"allow_{place.right}: {visible(path)} covers the sealed files ({visible(container)}), which the program is not to get at but as /sealed; "
                "give them a folder that no list covers: --sealed DIR"
            )


def parse_net(entry: str) -> Endpoint:
    """`host:port`, `host`, `10.0.0.0/8:443`, `[::1]:80`; UsageError for anything else."""
    host, port = _divide(entry, "allow_net")
    return Endpoint(host, _network(host, entry, "allow_net"), _port(port, entry, "allow_net", least=1))


def parse_listen(entry: str) -> Endpoint:
    """`host:port` or `[::1]:port`, one address; port 0: any. UsageError for anything else."""
    host, port = _divide(entry, "allow_listen")
    network = _network(host, entry, "allow_listen")
    if network is not None and network.num_addresses != 1:
        raise UsageError(f"allow_listen: {entry!r} is a network; name the one address to listen on")
    if port is None:
        raise UsageError(f"allow_listen: {entry!r} names no port; write HOST:PORT, for example 127.0.0.1:8080")
    return Endpoint(host, network, _port(port, entry, "allow_listen", least=0))


def _divide(entry: str, where: str) -> tuple[str, str | None]:
    if not isinstance(entry, str):
        raise UsageError(f"{where}: {entry!r} is no text; {_NET_FORMS}")
    if entry.startswith("["):
        bracketed = re.fullmatch(r"\[([0-9A-Fa-f:.]+(?:/[0-9]{1,3})?)\](?::([^:]*))?", entry)
        if bracketed is None or ":" not in bracketed[1]:
            raise UsageError(f"{where}: {entry!r} is malformed; {_NET_FORMS}")
        return bracketed[1].lower(), bracketed[2]
    host, colon, port = entry.partition(":")
    if ":" in port:
        raise UsageError(f"{where}: {entry!r} has several colons; an IPv6 address stands in brackets, as in [::1]:80")
    return host.lower(), port if colon else None


def _network(host: str, entry: str, where: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    if ":" in host or "/" in host or host.rstrip(".").rpartition(".")[2].isdigit():
        try:
            return ipaddress.ip_network(host)
        except ValueError as error:
            raise UsageError(f"{where}: {entry!r}: {error}; {_NET_FORMS}") from error
    if not _HOST.match(host):
        raise UsageError(f"{where}: {entry!r} names no host; {_NET_FORMS}")
    return None


def _port(text: str | None, entry: str, where: str, *, least: int) -> int | None:
    if text is None:
        return None
    if not _PORT.match(text) or not least <= int(text) <= 65535:
        raise UsageError(f"{where}: {entry!r}: {text!r} is no port ({least} to 65535)")
    return int(text)


_NET_FORMS = "write host:port, host, 10.0.0.0/8:443 or [::1]:80 (a name outside ASCII in its xn-- form)"


def _check_function(name: str) -> str:
    if not isinstance(name, str) or not name.isidentifier():
        raise UsageError(
            f"allow_call: {name!r} is no function's name; list names of functions that you pass in functions=[…]"
        )
    return name
