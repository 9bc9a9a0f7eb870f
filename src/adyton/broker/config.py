"""broker.toml: which secrets there are, and who is given them. Read once, at the start; strictly.

    key = "broker.key"                 # what enclaves know the broker by: made if it is not there
    log = "broker.log"                 # and broker.log.head
    log_key = "broker.log.key"         # that signs the log: made if it is not there, with broker.log.key.pub
    collateral = "collateral"          # what vendors published, see `adyton verify --collateral`
    [limits]
    connections = 64                   # at a time; of more, the oldest goes
    seconds = 30                       # that one may take
    [secret.database]
    file = "secrets/database"          # the secret is what is in it, byte for byte
    [secret.database.expect]           # as in a policy
    platforms = ["tdx"]
    …

Paths are relative to the file's folder.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, BinaryIO

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from adyton.attestation.expectation import Expectation
from adyton.attestation.tables import convert, expect_table, known
from adyton.broker.protocol import MAX_NAME, MAX_SECRET, NAME_PATTERN
from adyton.broker.secret_memory import SecretMemory
from adyton.channel.credential import Credential
from adyton.crypto.keys import MAX_KEY_FILE, SigningKey
from adyton.crypto.self_signed import certificate_around
from adyton.durable import sync_folder_of
from adyton.errors import UsageError

_KEYS = ("key", "log", "log_key", "collateral", "limits", "secret")
_LIMITS = ("connections", "seconds")
_SECRET = ("file", "expect")
_MAX_CONFIG = 1 << 24  # bytes
_Path = Annotated[str, msgspec.Meta(min_length=1)]


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`connections`: at a time; `seconds`: that one may take."""

    connections: Annotated[int, msgspec.Meta(ge=1, le=16384)] = 64
    seconds: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 30.0


class _Paths(msgspec.Struct):
    key: _Path = "broker.key"
    log: _Path = "broker.log"
    log_key: _Path = ""  # the log's name, and .key
    collateral: _Path | None = None


class _SecretTable(msgspec.Struct):
    file: _Path


@dataclass(frozen=True)
class Secret:
    """A secret, and who is given it."""

    memory: SecretMemory
    expect: Expectation

    @property
    def view(self) -> memoryview:
        return self.memory.view


@dataclass(frozen=True)
class BrokerConfig:
    """The file, and what it names. `credential`: of the broker's key. `begins`: all keys were made just now."""

    credential: Credential
    log: str
    log_key: SigningKey
    begins: bool
    collateral: str | None
    limits: Limits
    secrets: Mapping[str, Secret] = field(repr=False)

    @property
    def key(self) -> str:
        """The digest by which enclaves know the broker."""
        return f"sha256:{self.credential.digest.hex()}"

    @classmethod
    def read(cls, path: str) -> BrokerConfig:
        """UsageError says what cannot be used, and where; keys that are not there are made only if all else can be."""
        name, base = path, os.path.dirname(os.path.abspath(path))
        document = _document(path)
        known(document, _KEYS, name, None)
        paths = convert({key: document[key] for key in _Paths.__struct_fields__ if key in document}, _Paths, name, "")
        limits = document.get("limits", {})
        known(limits, _LIMITS, name, "limits")
        tables = document.get("secret", {})
        if not isinstance(tables, Mapping) or not tables:
            raise UsageError(f"{name} names no secret: write [secret.NAME] with file, and [secret.NAME.expect]")
        bounds = convert(limits, Limits, name, "limits")
        secrets = {each: _secret(each, table, name, base) for each, table in tables.items()}
        log = os.path.join(base, paths.log)
        log_key = os.path.join(base, paths.log_key) if paths.log_key else f"{log}.key"
        key = os.path.join(base, paths.key)
        begins = not any(map(os.path.lexists, (key, log_key)))
        return cls(
            _credential(key),
            log,
            _log_key(log_key, log),
            begins,
            None if paths.collateral is None else os.path.join(base, paths.collateral),
            bounds,
            secrets,
        )


def _document(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            return tomllib.loads(file.read(_MAX_CONFIG).decode())
    except OSError as error:
        raise UsageError(f"the configuration {path} cannot be read: {error.strerror}; name a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: not TOML: {error}") from error


def _secret(each: str, table: Any, name: str, base: str) -> Secret:
    where = f"secret.{each}"
    if not re.match(NAME_PATTERN, each) or len(each) > MAX_NAME:
        raise UsageError(f"{name}: [{where}]: a secret's name has up to {MAX_NAME} letters, digits and _ . -")
    known(table, _SECRET, name, where)
    if "expect" not in table:
        raise UsageError(f"{name}: [{where}] says not who is given it: write [{where}.expect], as in a policy")
    expect = expect_table(table["expect"], name, where=f"{where}.expect")
    try:
        expect.check()
    except UsageError as error:
        raise UsageError(f"{name}: [{where}.expect]: {error}") from None
    file = convert({"file": table.get("file")}, _SecretTable, name, where).file
    return Secret(_contents(os.path.join(base, file), f"{name}: {where}.file"), expect)


def _contents(path: str, where: str) -> SecretMemory:
    """The secret in a file, never in any memory but its own."""
    with _private(path, where) as file:
        size = os.fstat(file.fileno()).st_size
        if not 0 < size <= MAX_SECRET:
            raise UsageError(f"{where}: {path} has {size} bytes; a secret has 1 to {MAX_SECRET}")
        memory = SecretMemory(size)
        try:
            if os.readv(file.fileno(), [memory.view]) != size:
                raise UsageError(f"{where}: {path} changes while it is read")
        except OSError as error:
            raise UsageError(f"{where}: {path} cannot be read: {error.strerror}") from error
    return memory


def _private(path: str, where: str) -> BinaryIO:
    """The file, open; UsageError unless it is one that nobody else can read or write."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise UsageError(f"{where}: {path} cannot be read: {error.strerror}") from error
    status = os.fstat(descriptor)
    mode = stat.S_IMODE(status.st_mode)
    why = ""
    if not stat.S_ISREG(status.st_mode):
        why = "is no file"
    elif mode & 0o027:
        why = f"has mode {mode:04o}, so that others can read it or its group can write it: chmod 600 {path}"
    elif status.st_uid not in (0, os.geteuid()):
        why = "is another user's"
    if why:
        os.close(descriptor)
        raise UsageError(f"{where}: {path} {why}")
    return open(descriptor, "rb", buffering=0)


def _credential(path: str) -> Credential:
    """Of the broker's key, made if there is none."""
    if not os.path.lexists(path):
        made = ec.generate_private_key(ec.SECP256R1())
        data = made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with open(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(descriptor)
            sync_folder_of(path)
        except OSError as error:
            raise UsageError(f"the broker's key cannot be written to {path}: {error.strerror}") from error
    with _private(path, "key") as file:
        data = file.read(MAX_KEY_FILE)
    try:
        key = load_pem_private_key(data, None)
    except Exception as error:
        raise UsageError(
            f"key: {path} is no unencrypted private key in PEM: remove it, and another one is made"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise UsageError(f"key: {path} is no P-256 key: remove it, and one is made")
    return Credential(key, (certificate_around(key, "adyton broker"),))


def _log_key(path: str, log: str) -> SigningKey:
    """The key that signs the log, made if there is neither."""
    if not os.path.lexists(path):
        if os.path.lexists(log):
            raise UsageError(f"log_key: {path} is not there, and the log {log} is: with another key it could not go on")
        SigningKey.generate().save(path)
    _private(path, "log_key").close()
    return SigningKey.load(path)
