"""What an enclave must prove and what it may do: the policy file, arguments and the environment, put together.

    source                                         its relative paths are below
    the policy file                                the folder that it is in
    keyword arguments, options                     the working directory
    ADYTON_ALLOW_READ and the like, each where     the working directory
      its argument is not given

Arguments and environment add to the lists of the file. Lists of paths in the environment are separated as in PATH, others by
spaces.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

import msgspec

from adyton.attestation.acl import Acl, AllOf
from adyton.attestation.expectation import Expectation
from adyton.attestation.tables import convert, expect_table, known, one_of
from adyton.communicator.messages import Coherence
from adyton.durable import make_folder
from adyton.errors import UsageError
from adyton.hostcall.client.paths import absolute
from adyton.hostcall.client.policy import HostCallPolicy, PathLike

_PATHS = ("read", "write")  # of the lists, those that hold paths
_TABLES = ("expect", "allow", "mount", "sealed")
_MOUNT = ("path", "coherence")

# Of the last commit of sealed files, so that it is found if all of them were set back. "kept": here, of those on a server's disk; "required": and what nobody remembers is refused.
Memory = Literal["kept", "required", "none"]


@dataclass(frozen=True)
class AllowSettings:
    """The lists of `[allow]`, paths made absolute; not judged yet (HostCallPolicy.create does that)."""

    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    net: tuple[str, ...] = ()
    listen: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    call: tuple[str, ...] = ()

    @classmethod
    def create(
        cls,
        *,
        base: str,
        read: Iterable[PathLike] = (),
        write: Iterable[PathLike] = (),
        net: Iterable[str] = (),
        listen: Iterable[str] = (),
        env: Iterable[str] = (),
        call: Iterable[str] = (),
    ) -> AllowSettings:
        """From keyword arguments or options; relative paths are below `base`. UsageError for what is no list of texts."""
        return cls(
            read=_paths("read", read, base),
            write=_paths("write", write, base),
            net=_texts("net", net),
            listen=_texts("listen", listen),
            env=_texts("env", env),
            call=_texts("call", call),
        )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], *, base: str) -> AllowSettings:
        """From ADYTON_ALLOW_READ and the like."""
        lists: dict[str, list[str]] = {}
        for name in _LISTS:
            value = environment.get(f"ADYTON_ALLOW_{name.upper()}", "")
            lists[name] = [item for item in value.split(os.pathsep) if item] if name in _PATHS else value.split()
        return cls.create(base=base, **lists)

    def __add__(self, other: AllowSettings) -> AllowSettings:
        """All of both, without repetitions."""
        return AllowSettings(
            **{name: tuple(dict.fromkeys(getattr(self, name) + getattr(other, name))) for name in _LISTS}
        )

    def or_else(self, other: AllowSettings) -> AllowSettings:
        """Each list of this one, or the other's where this one's is empty."""
        return AllowSettings(**{name: getattr(self, name) or getattr(other, name) for name in _LISTS})


_LISTS = tuple(each.name for each in fields(AllowSettings))


@dataclass(frozen=True)
class Mount:
    """How coherent a path must be."""

    path: str
    coherence: Coherence


@dataclass(frozen=True)
class Policy:
    """What an enclave must prove, and what it may do. `expect` is None where nothing was said; immutable.

    `acl`: what was put together in Python, which must hold besides.
    """

    expect: Expectation | None = None
    allow: AllowSettings = field(default_factory=AllowSettings)
    mounts: tuple[Mount, ...] = ()
    sealed: str | None = None  # the folder on this machine in which the enclave's sealed files lie
    acl: Acl | None = None
    memory: Memory = "kept"  # of sealed files' last commits

    @classmethod
    def read(cls, source: PathLike | Policy | None) -> Policy:
        """A policy file; UsageError if it cannot be read, or holds anything unknown or malformed. None: the empty policy."""
        if source is None:
            return cls()
        if isinstance(source, Policy):
            return source
        return cls.parse(_read(source), name=os.fspath(source), base=os.path.dirname(os.path.abspath(source)))

    @classmethod
    def parse(cls, text: str, *, name: str, base: str) -> Policy:
        """The policy file whose content is `text`. `name`: for errors; `base`: the folder that relative paths are below."""
        document = _parse(text, name)
        expect, allow = document.get("expect"), document.get("allow")
        return cls(
            None if expect is None else expect_table(expect, name),
            AllowSettings() if allow is None else _allow(allow, name, base),
            _mounts(document.get("mount", []), name, base),
            *(_sealed(document["sealed"], name, base) if "sealed" in document else ()),
        )

    @classmethod
    def of_environment(cls, expect: Mapping[str, Any] | Acl | None, allow: Mapping[str, Any] | None) -> Policy:
        """The file that ADYTON_POLICY names, with the tables added to it, and ADYTON_ALLOW_… for lists that `allow` has not."""
        tables = cls.from_tables(None, allow)
        lists: dict[str, Any] = {name: getattr(tables.allow, name) for name in _LISTS}
        return cls.read(os.environ.get("ADYTON_POLICY") or None).extended(expect=expect, **lists)

    @classmethod
    def from_tables(cls, expect: Mapping[str, Any] | Acl | None, allow: Mapping[str, Any] | None) -> Policy:
        """The tables of a policy file, given in Python; relative paths are below the working directory."""
        given = AllowSettings() if allow is None else _allow(allow, "allow=", os.getcwd())
        return cls(allow=given).extended(expect=expect, environment={})

    def extended(
        self,
        *,
        expect: Mapping[str, Any] | Acl | None = None,
        read: Iterable[PathLike] = (),
        write: Iterable[PathLike] = (),
        net: Iterable[str] = (),
        listen: Iterable[str] = (),
        env: Iterable[str] = (),
        call: Iterable[str] = (),
        sealed: PathLike | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Policy:
        """The policy with what arguments add to it; where a list is not given, what `environment` (os.environ) adds.

        Lists of `expect` are added too; its other values replace those of this policy. An `Acl` must hold besides.
        """
        base = os.getcwd()
        given = AllowSettings.create(base=base, read=read, write=write, net=net, listen=listen, env=env, call=call)
        environment = os.environ if environment is None else environment
        variables = AllowSettings.from_environment(environment, base=base)
        folder = sealed if sealed is not None else environment.get("ADYTON_SEALED") or None
        chosen = self.sealed if folder is None else absolute(folder, base, "sealed")
        expectation, acl = self.expect, self.acl
        if isinstance(expect, Acl):
            expect.check()
            acl = expect if acl is None else AllOf(acl, expect)
        elif expect is not None:
            if not isinstance(expect, Mapping):
                raise UsageError(
                    f"expect={expect!r} says nothing: give a dict of the keys of [expect], or an Expectation, AllOf or AnyOf of some"
                )
            expectation = expect_table(expect, "expect=", self.expect)
        return Policy(expectation, self.allow + given.or_else(variables), self.mounts, chosen, acl, self.memory)

    def host_calls(self, working_directory: str | None = None, container: str | None = None) -> HostCallPolicy:
        """The policy of `allow`, its paths resolved now; UsageError for what no policy can allow. `container`: of its sealed files."""
        lists: dict[str, Any] = {name: getattr(self.allow, name) for name in _LISTS}
        return HostCallPolicy.create(base=working_directory or os.getcwd(), container=container, **lists)

    def container(self, name: str) -> str | None:
        """Where the sealed files of the image of that name lie on this machine, in a folder that is made if need be; None: nowhere. UsageError."""
        if self.sealed is None:
            return None
        try:
            make_folder(self.sealed)
        except OSError as error:
            raise UsageError(
                f"sealed: {self.sealed} cannot be made: {error.strerror}; name a folder of yours"
            ) from error
        return os.path.join(os.path.realpath(self.sealed), f"{name.replace(':', '-')}.sealed")


class _AllowTable(msgspec.Struct, forbid_unknown_fields=True):
    read: list[str] = []
    write: list[str] = []
    net: list[str] = []
    listen: list[str] = []
    env: list[str] = []
    call: list[str] = []


class _SealedTable(msgspec.Struct, forbid_unknown_fields=True):
    path: str | None = None
    memory: Memory = "kept"


class _MountTable(msgspec.Struct, forbid_unknown_fields=True):
    path: str
    coherence: Coherence = "close-to-open"


def _texts(name: str, items: Iterable[str]) -> tuple[str, ...]:
    if isinstance(items, str | bytes | os.PathLike):
        raise UsageError(f"allow_{name} is {items!r}; it must be a list: allow_{name}=[{items!r}]")
    found = tuple(items)
    for item in found:
        if not isinstance(item, str):
            raise UsageError(f"allow_{name}: {item!r} is no text")
    return found


def _paths(name: str, items: Iterable[PathLike], base: str) -> tuple[str, ...]:
    if isinstance(items, str | bytes | os.PathLike):
        raise UsageError(f"allow_{name} is {items!r}; it must be a list: allow_{name}=[{items!r}]")
    return tuple(absolute(item, base, f"allow_{name}") for item in items)


def _read(path: PathLike) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError as error:
        raise UsageError(
            f"the policy {os.fspath(path)} cannot be read: {error.strerror or error}; name a TOML file"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"the policy {os.fspath(path)} is not UTF-8, which TOML is: {error}") from error


def _parse(text: str, name: str) -> dict[str, Any]:
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{name}: not TOML: {error}") from error
    known(document, _TABLES, name, None)
    return document


def _allow(table: Any, name: str, base: str) -> AllowSettings:
    known(table, _LISTS, name, "allow")
    lists = convert(table, _AllowTable, name, "allow")
    try:
        return AllowSettings.create(base=base, **msgspec.structs.asdict(lists))
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from error


def _mounts(tables: Any, name: str, base: str) -> tuple[Mount, ...]:
    if not isinstance(tables, list):
        raise UsageError(f"{name}: mount must be a list of tables: write [[mount]], with two brackets")
    found = []
    for table in tables:
        known(table, _MOUNT, name, "mount")
        if "coherence" in table:
            one_of(table["coherence"], get_args(Coherence), name, "mount.coherence")
        mount = convert(table, _MountTable, name, "mount")
        found.append(Mount(absolute(mount.path, base, f"{name}: mount"), mount.coherence))
    return tuple(found)


def _sealed(table: Any, name: str, base: str) -> tuple[str | None, None, Memory]:
    """The folder, no Acl, and what is to be remembered."""
    known(table, ("path", "memory"), name, "sealed")
    if "memory" in table:
        one_of(table["memory"], get_args(Memory), name, "sealed.memory")
    found = convert(table, _SealedTable, name, "sealed")
    if not table:
        raise UsageError(f"{name}: [sealed] says nothing: give `path` or `memory`, or leave it out")
    return None if found.path is None else absolute(found.path, base, f"{name}: sealed"), None, found.memory
