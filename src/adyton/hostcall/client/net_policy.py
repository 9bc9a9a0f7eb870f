"""Which addresses an enclave may reach and listen on: the policy's `net` and `listen`, and what its names resolved to on this machine.

A connection goes to an address. It is allowed if a rule's network holds the address, or if a rule's name resolved to it, for the
enclave or when the connection was asked for; in both cases if the rule has the port. A name that no rule has is not looked up, as that
would tell others of it: the enclave gets an address that leads nowhere (of 198.18.0.0/15, RFC 2544), and a connection there is denied
under the name. Rules for every address (0.0.0.0/0, ::/0) have every name.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Callable

from adyton.hostcall.client.policy import Denied, Endpoint, HostCallPolicy
from adyton.hostcall.sockets import MAX_ADDRESSES

REMEMBERED_SECONDS = 600.0  # that an address counts as a name's after it was last seen
FRESH_SECONDS = 30.0  # that a look-up for a connection is not repeated
MAX_REMEMBERED = 4096  # addresses, and denied names

LookUp = Callable[[str], list[str]]

_NOWHERE = ipaddress.IPv4Network("198.18.0.0/15")


def look_up(name: str) -> list[str]:
    """The addresses of a name as this machine resolves it, in its order of preference. socket.gaierror."""
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    hosts = dict.fromkeys(
        str(address[0]) for family, *_, address in found if family in (socket.AF_INET, socket.AF_INET6)
    )
    return [host for host in hosts if "%" not in host][:MAX_ADDRESSES]


class NetPolicy:
    """See the module. Thread-safe; `resolve`, `connect` and `look_up_listeners` may wait for a resolver, the others do not."""

    def __init__(
        self, policy: HostCallPolicy, look_up: LookUp = look_up, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._net = policy.net
        self._listen = policy.listen
        self._look_up = look_up
        self._now = now
        self._lock = threading.Lock()
        self._names: dict[str, list[int | None]] = {}  # a rule's name → its ports; None: every one
        for rule in self._net:
            if rule.network is None:
                self._names.setdefault(_plain(rule.host), []).append(rule.port)
        self._listeners: dict[
            str, set[ipaddress.IPv4Address | ipaddress.IPv6Address]
        ] = {}  # a rule's name → where it is
        self._every_name = any(rule.network is not None and rule.network.prefixlen == 0 for rule in self._net)
        self._seen: dict[str, dict[str, float]] = {}  # name → its addresses, and until when they count
        self._looked: dict[str, float] = {}  # name → when it was looked up for a connection
        self._nowhere: dict[str, str] = {}  # name → the address that stands for it
        self._denied: dict[str, str] = {}  # the other way

    def resolve(self, name: str) -> list[str]:
        """The addresses of a name for the enclave. socket.gaierror: there is no such name, or the resolver fails."""
        name = _plain(name)
        if name not in self._names and not self._every_name:
            nowhere = self._stand_for(name)
            return [nowhere] if nowhere is not None else []
        return self._remember(name)

    def _remember(self, name: str) -> list[str]:
        hosts = self._look_up(name)
        until = self._now() + REMEMBERED_SECONDS
        with self._lock:
            seen = self._seen.setdefault(name, {})
            for host in hosts:
                if len(seen) >= MAX_REMEMBERED:
                    seen.pop(next(iter(seen)))
                seen[_host(host)] = until
        return hosts

    def _stand_for(self, name: str) -> str | None:
        with self._lock:
            found = self._nowhere.get(name)
            if found is None and len(self._nowhere) < MAX_REMEMBERED:
                found = self._nowhere[name] = str(_NOWHERE[len(self._nowhere) + 1])
                self._denied[found] = name
            return found

    def allows(self, host: str, port: int) -> bool:
        """Whether a rule has this address and port, by all that is known already."""
        host = _host(host)
        if host in self._denied:
            return False
        address = ipaddress.ip_address(host)
        if any(_within(rule, address) and _has(rule.port, port) for rule in self._net):
            return True
        now = self._now()
        with self._lock:
            return any(
                any(_has(each, port) for each in ports) and self._seen.get(name, {}).get(host, now) > now
                for name, ports in self._names.items()
            )

    def connect(self, host: str, port: int) -> Denied | None:
        """None if the enclave may connect there; the names of the rules are looked up, if need be."""
        if self.allows(host, port):
            return None
        if _host(host) not in self._denied:
            for name, ports in self._names.items():
                if any(_has(each, port) for each in ports) and self._looks_again(name) and self.allows(host, port):
                    return None
        return Denied("net", self._subject(host, port))

    def _looks_again(self, name: str) -> bool:
        """Look a rule's name up, unless that was done a moment ago."""
        now = self._now()
        with self._lock:
            if self._looked.get(name, now - FRESH_SECONDS) > now - FRESH_SECONDS:
                return False
            self._looked[name] = now
        try:
            self._remember(name)
        except OSError:
            return False
        return True

    def _subject(self, host: str, port: int) -> str:
        """What to allow: the name under which the enclave knows the address, if it does."""
        host = _host(host)
        with self._lock:
            name = self._denied.get(host) or next((name for name, seen in self._seen.items() if host in seen), host)
        return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"

    def listen(self, host: str, port: int) -> Denied | None:
        """None if the enclave may listen there; port 0: on any that is free."""
        address = ipaddress.ip_address(_host(host))
        for rule in self._listen:
            if rule.port in (0, port) and (_within(rule, address) or address in self._listeners.get(rule.host, ())):
                return None
        return Denied("listen", f"[{host}]:{port}" if ":" in host else f"{host}:{port}")

    def look_up_listeners(self) -> None:
        """Find out where the names of `listen` are, which is done once; `listen` does not wait afterwards."""
        for rule in self._listen:
            if rule.network is None and rule.host not in self._listeners:
                try:
                    hosts = self._look_up(rule.host)
                except OSError:
                    hosts = []
                with self._lock:
                    self._listeners[rule.host] = {ipaddress.ip_address(host) for host in hosts}

    def binds_any(self, host: str) -> bool:
        """Whether a socket may have this local address and a port of the system's choice. Nobody can connect to it before it listens."""
        return bool(self._net or self._listen) or self.listen(host, 0) is None


def _plain(name: str) -> str:
    return name.lower().rstrip(".")


def _host(host: str) -> str:
    """An address in its one spelling; an IPv4 address in IPv6's clothes is the IPv4 address."""
    address = ipaddress.ip_address(host)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def _within(rule: Endpoint, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return rule.network is not None and address in rule.network


def _has(ruled: int | None, port: int) -> bool:
    return ruled is None or ruled == port
