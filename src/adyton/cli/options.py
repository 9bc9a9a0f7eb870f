"""Options that several commands share. Each is also an environment variable ADYTON_SOME_OPTION."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from adyton.attestation.identity import CONFIGS, PLATFORMS
from adyton.cli.values import PATH, SECONDS, OneOf
from adyton.communicator.joining import GRACE_SECONDS, MAX_GRACE
from adyton.errors import UsageError

if TYPE_CHECKING:
    from adyton.remote.address import TLS

_C = TypeVar("_C", bound=Callable[..., Any])
PLATFORM_NAMES = ("auto", *PLATFORMS)
_SECURITY_TYPES = OneOf(["ssl", "local"], case_sensitive=False)


def variable(option: str) -> str:
    """The environment variable of an option: --allow-read → ADYTON_ALLOW_READ."""
    return "ADYTON_" + option.lstrip("-").replace("-", "_").upper()


def option(name: str, *more: str, **attributes: Any) -> Callable[[_C], _C]:
    """A click option that can also be given by its environment variable. `more`: other names, as click takes them."""
    return click.option(name, *more, envvar=variable(name), show_envvar=False, **attributes)


def python_option() -> Callable[[_C], _C]:
    """The option --python of what builds images."""
    return option(
        "--python",
        metavar="VERSION",
        default="",
        help="Which Python an image's packages are for, such as 3.12. Default: this one, if the program runs on it.",
    )


def json_option(text: str = "Failures as JSON.") -> Callable[[_C], _C]:
    """The option --json, as the argument `as_json`; the root command turns failures into JSON."""
    return option("--json", "as_json", is_flag=True, help=text)


@dataclass(frozen=True)
class LoadOptions:
    """The options of `call` and `run` that say where and how an enclave is loaded."""

    on: str | None
    platform: str
    policy: str | None
    allow: dict[str, tuple[str, ...]]
    sealed: str | None
    allow_sim: bool
    timeout: float | None
    remote_proxy: str | None
    ca: str | None
    cert: str | None
    key: str | None
    token_file: str | None
    caller_key: str | None
    caller_cert: str | None
    security_type: str | None
    stats: str | None
    trace: str | None
    python: str

    def environment(self) -> dict[str, str]:
        """The same as environment variables, for a driver that `run` starts: instead of those that `run` leaves out."""
        values: dict[str, str | None] = {
            "on": self.on,
            "platform": self.platform,
            "policy": self.policy and os.path.abspath(self.policy),
            "sealed": self.sealed and os.path.abspath(self.sealed),
            "allow-sim": "1" if self.allow_sim else None,
            "timeout": None if self.timeout is None else str(self.timeout),
            "remote-proxy": self.remote_proxy,
            "ca": self.ca and os.path.abspath(self.ca),
            "cert": self.cert and os.path.abspath(self.cert),
            "key": self.key and os.path.abspath(self.key),
            "token-file": self.token_file and os.path.abspath(self.token_file),
            "caller-key": self.caller_key and os.path.abspath(self.caller_key),
            "caller-cert": self.caller_cert and os.path.abspath(self.caller_cert),
            "security-type": self.security_type,
            "stats": self.stats and os.path.abspath(self.stats),
            "trace": self.trace and os.path.abspath(self.trace),
            "python": self.python or None,
        }
        for right, given in self.allow.items():
            separator = os.pathsep if right in ("read", "write") else " "
            paths = [os.path.abspath(path) for path in given] if right in ("read", "write") else given
            values[f"allow-{right}"] = separator.join(paths) or None
        return {variable(name): value for name, value in values.items() if value is not None}


def load_options(command: _C) -> _C:
    """Give a command the load options, as one argument `load: LoadOptions`."""
    from functools import wraps

    @wraps(command)
    def wrapped(**given: Any) -> Any:
        given["load"] = LoadOptions(
            on=given.pop("on"),
            platform=_platform(given.pop("platform"), given.pop("config")),
            policy=given.pop("policy"),
            allow={right: given.pop(f"allow_{right}") for right in ("read", "write", "net", "listen", "env", "call")},
            sealed=given.pop("sealed"),
            allow_sim=given.pop("allow_sim"),
            timeout=given.pop("timeout"),
            remote_proxy=given.pop("remote_proxy"),
            ca=given.pop("ca"),
            cert=_either(given, "cert", "ssl_cert"),
            key=_either(given, "key", "ssl_key"),
            token_file=given.pop("token_file"),
            caller_key=given.pop("caller_key"),
            caller_cert=given.pop("caller_cert"),
            security_type=given.pop("security_type"),
            stats=given.pop("stats"),
            trace=given.pop("trace"),
            python=given.pop("python"),
        )
        return command(**given)

    decorators: Sequence[Callable[[Any], Any]] = (
        option(
            "--on",
            metavar="URL",
            help="The server: grpc://H[:4321], grpcs://H[:4321], unix:PATH. Default: a proxy server here.",
        ),
        option("--platform", type=OneOf(PLATFORM_NAMES), default="auto", help="Where the enclave must run."),
        option(
            "--config",
            type=OneOf(list(CONFIGS)),
            help="As the original has it: sgx, or sgx-sim for --platform sim.",
        ),
        option("--policy", metavar="FILE", help="What evidence must say, and what the enclave may do here."),
        option(
            "--allow-read",
            multiple=True,
            type=PATH,
            metavar="PATH",
            help="The enclave may read it, and what is under it.",
        ),
        option("--allow-write", multiple=True, type=PATH, metavar="PATH", help="… and write, create and delete."),
        option("--allow-net", multiple=True, metavar="HOST[:PORT]", help="The enclave may connect to it."),
        option("--allow-listen", multiple=True, metavar="HOST:PORT", help="The enclave may listen there."),
        option("--allow-env", multiple=True, metavar="NAME", help="The enclave gets this variable."),
        option(
            "--allow-call", multiple=True, metavar="FUNCTION", help="The enclave may call this registered function."
        ),
        option(
            "--sealed",
            type=PATH,
            metavar="DIR",
            help="A folder here for the enclave's sealed files (/sealed): ciphertext.",
        ),
        option("--allow-sim", is_flag=True, help="Accept a simulated enclave on a server: it is NOT CONFIDENTIAL."),
        option("--timeout", type=SECONDS, metavar="S", help="Seconds that the load, and each call, may take."),
        option(
            "--remote-proxy", metavar="COMMAND", help="The proxy server that is started here. Default: adyton proxy."
        ),
        option("--ca", metavar="FILE", help="Check the server's certificate by this CA. Default: the public ones."),
        option("--cert", metavar="FILE", help="Our certificate (PEM), for a server that asks for one."),
        option("--key", metavar="FILE", help="Its key (PEM, not encrypted)."),
        option("--ssl-cert", metavar="FILE", help="The original's name for --cert."),
        option("--ssl-key", metavar="FILE", help="The original's name for --key."),
        option(
            "--token-file",
            metavar="FILE",
            help="A file with the token that the server wants; never sent over a network without TLS.",
        ),
        option("--caller-key", metavar="FILE", help="A key (PEM, not encrypted) that the enclave is to know us by."),
        option("--caller-cert", metavar="FILE", help="The certificate around it (PEM), with its chain."),
        option(
            "--security-type",
            type=_SECURITY_TYPES,
            help="As in the original: ssl insists on TLS, also with a server here; local is without, and for a server here only.",
        ),
        option("--stats", metavar="FILE", help="Write counts of calls and bytes there, as JSON."),
        option(
            "--trace",
            metavar="FILE",
            help="Write there when each call, and each wait for this machine, began and ended; Perfetto opens it.",
        ),
        python_option(),
    )
    result: Any = wrapped
    for decorate in reversed(decorators):
        result = decorate(result)
    return result  # type: ignore[no-any-return]


def _platform(platform: str, config: str | None) -> str:
    """What --platform and --config say together; a command line's beats that of the environment, and two must mean the same."""
    context = click.get_current_context()
    typed = [context.get_parameter_source(name) is ParameterSource.COMMANDLINE for name in ("platform", "config")]
    if config is None or typed == [True, False]:
        return platform
    if platform not in ("auto", CONFIGS[config]) and typed != [False, True]:
        raise UsageError(f"--config {config} means --platform {CONFIGS[config]}, not {platform}: give one of the two")
    return CONFIGS[config]


def _either(given: dict[str, Any], ours: str, original: str) -> str | None:
    """The value of an option that has two names; a command line's beats that of the environment, and two must be the same."""
    from adyton.remote.address import the_same

    context = click.get_current_context()
    values = {name: given.pop(name) for name in (ours, original)}
    typed = {name: context.get_parameter_source(name) is ParameterSource.COMMANDLINE for name in values}
    if any(typed.values()):
        values = {name: value if typed[name] else None for name, value in values.items()}
    first, second = ((f"--{name}", value) for name, value in values.items())
    return the_same(first, second)


def grace_option() -> Callable[[_C], _C]:
    """--grace of a command that starts enclaves."""
    return option(
        "--grace",
        type=click.FloatRange(0, MAX_GRACE),
        default=GRACE_SECONDS,
        metavar="S",
        show_default=True,
        help="Seconds for which an enclave whose connection to its client was lost waits for another one.",
    )


def sealed_directory_option() -> Callable[[_C], _C]:
    """--sealed-directory of a command that starts enclaves."""
    return option(
        "--sealed-directory",
        metavar="DIR",
        help="Where enclaves have sealed files (/sealed), as ciphertext, and where those on clients' disks are remembered. Default: nowhere here.",
    )


def server_options(command: _C) -> _C:
    """Give a command --ssl_cert, --ssl_key, --client-ca, --token-file, --security_type and --insecure."""
    decorators: Sequence[Callable[[Any], Any]] = (
        option("--ssl-cert", metavar="FILE", help="The server's certificate (PEM)."),
        option("--ssl-key", metavar="FILE", help="Its key (PEM, not encrypted)."),
        option("--client-ca", metavar="FILE", help="Clients must show a certificate of this CA."),
        option("--token-file", metavar="FILE", help="Clients must show the token in this file."),
        option(
            "--security-type",
            type=_SECURITY_TYPES,
            help="As in the original: ssl needs --ssl_cert and --ssl_key; local is without TLS.",
        ),
        option(
            "--insecure",
            is_flag=True,
            help="Serve a network without TLS or credentials: anyone who reaches it may run enclaves here.",
        ),
    )
    result: Any = command
    for decorate in reversed(decorators):
        result = decorate(result)
    return result  # type: ignore[no-any-return]


def server_tls(cert: str | None, key: str | None, client_ca: str | None, security_type: str | None) -> TLS | None:
    """The TLS files that a server's options name; UsageError if they are not what the security type says."""
    from adyton.remote.address import TLS

    if security_type == "ssl" and (cert is None or key is None):
        raise UsageError("--security_type ssl needs --ssl_cert and --ssl_key")
    if security_type == "local" and (cert or key or client_ca):
        raise UsageError("--security_type local is without TLS: leave out --ssl_cert, --ssl_key and --client-ca")
    tls = TLS(ca=client_ca, cert=cert, key=key)
    return None if tls == TLS() else tls
