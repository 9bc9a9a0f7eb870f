"""Loading an enclave: image, policy, provision, connection, in this order. Behind `adyton.load` and EnclaveManager."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import msgspec

from adyton.attestation import attesters
from adyton.attestation.acl import Acl, AllOf
from adyton.attestation.expectation import Expectation
from adyton.attestation.identity import CONFIGS, PLATFORMS, EnclaveIdentity
from adyton.attestation.sealing.header import To
from adyton.attestation.sealing.owners import owner_name
from adyton.channel.credential import Credential
from adyton.client import EnclaveClient, checked_timeout, error_of, opened
from adyton.communicator.messages import LoadRequest
from adyton.config import Policy
from adyton.errors import PlatformError, UsageError
from adyton.hostcall.client.executor import Executor
from adyton.hostcall.client.exit_log import ExitLog
from adyton.hostcall.client.functions import HostFunctions
from adyton.hostcall.client.paths import visible
from adyton.hostcall.client.policy import HostCallPolicy
from adyton.hostcall.client.sealed_memory import SealedMemory, memory_folder
from adyton.hostcall.client.streams import StandardInput, StandardOutput
from adyton.image.build import built_image
from adyton.image.oci import Image
from adyton.load_request import load_request, standard_input, working_directory
from adyton.proto.enclave import EnclaveConfig
from adyton.provision.budget import Budget
from adyton.provision.client import RemoteProvision
from adyton.remote.address import TLS, Caller
from adyton.remote.certificates import of_caller
from adyton.remote.client_pairs import CallFailed
from adyton.remote.in_process import in_process
from adyton.remote.process_metrics import ProcessMetrics
from adyton.remote.proxy_client import ProxyClient
from adyton.remote.trace import Trace
from adyton.remote.transport import Transport
from adyton.telemetry.switch import step, telemetry_of
from adyton.trusted.application import Enclave, TrustedApplication

if TYPE_CHECKING:
    from adyton.telemetry.calls import Telemetry

LOAD_TIMEOUT = 120.0  # seconds for a load whose caller gave no timeout
SIMULATED = "adyton: simulated enclave: NOT CONFIDENTIAL"

ImageSource = str | os.PathLike[str] | Enclave | Image


@dataclass(frozen=True)
class LoadArguments:
    """What a load needs besides image and provision. None: the environment says, or the default holds."""

    name: str | None = None
    policy: Policy | None = None
    config: EnclaveConfig = field(default_factory=EnclaveConfig)
    functions: Iterable[Callable[..., Any]] = ()
    accept_debug: bool = False
    allow_sim: bool | None = None
    platform: str | None = None
    tls: TLS | None = None
    caller: Caller | None = None
    timeout: float | None = None
    stats: str | None = None
    trace: str | None = None
    stdout: int = 1  # descriptor that the program's standard output goes to, unless `config` names one
    metrics: ProcessMetrics | None = None
    exit_logging: bool = False


def load(
    image: ImageSource,
    *,
    on: str | None = None,
    policy: str | os.PathLike[str] | Policy | None = None,
    expect: Mapping[str, Any] | Acl | None = None,
    allow_read: Iterable[str | os.PathLike[str]] = (),
    allow_write: Iterable[str | os.PathLike[str]] = (),
    allow_net: Iterable[str] = (),
    allow_listen: Iterable[str] = (),
    allow_env: Iterable[str] = (),
    allow_call: Iterable[str] = (),
    functions: Iterable[Callable[..., Any]] = (),
    allow_sim: bool = False,
    platform: str = "auto",
    tls: TLS | None = None,
    token: str | None = None,
    caller: Caller | None = None,
    name: str | None = None,
    timeout: float | None = None,
    remote_proxy: str | None = None,
    security_type: str | None = None,
    stats: str | None = None,
    trace: str | None = None,
    stdout: int = 1,
    sealed: str | os.PathLike[str] | None = None,
) -> EnclaveClient:
    """Load a confidential program into an enclave, and return the client that calls it.

    `image`: a .enclave or .py path, a `trusted.Enclave`, or "sha256:…" of an image that the server has. `on`: the server (else
    ADYTON_ON; else a proxy server of this machine). `policy`: a policy file; `expect` (a table of it, or expectations put together) and
    `allow_…` add to it.
    `tls`, `token`: for the server; `security_type`: "ssl" to insist on TLS, "local" for a server of this machine without.
    `caller`: the key, or certificate, that the enclave is to know this client by (`trusted.caller()`).
    `functions`: what `trusted.host_function` stubs may call, if `allow_call` names them. `allow_sim`: accept a simulated enclave on a
    server. `sealed`: a folder here for the enclave's sealed files (/sealed), as ciphertext. `timeout`: seconds for the load, and for each call. `stdout`: the descriptor for the program's standard output.

    Raises UsageError, ImageError, UnreachableError, UnauthenticatedError, PlatformError, AttestationError, or what the program's
    initialize raised.
    """
    for argument, given in (("name", name), ("platform", platform), ("token", token)):
        if given is not None and not isinstance(given, str):
            raise UsageError(f"{argument}={given!r}: give a text")
    if not isinstance(allow_sim, bool):
        raise UsageError(f"allow_sim={allow_sim!r}: give True or False")
    if not isinstance(caller, Caller | None):
        raise UsageError(f"caller={caller!r}: give adyton.Caller(key=), or (key=, cert=)")
    if not isinstance(policy, str | os.PathLike | Policy | None):
        raise UsageError(
            f"policy={policy!r}: give the path of a policy file; expect= and allow_…= are for what you have in Python"
        )
    if not (os.environ.get("ADYTON_ON") if on is None else on):
        for argument, secret in (("tls", tls), ("token", token)):
            if secret is not None:
                raise UsageError(f"{argument}= is for a server, and none is named: give on=, or leave {argument} out")
    settings = Policy.read(policy if policy is not None else os.environ.get("ADYTON_POLICY") or None)
    settings = settings.extended(
        expect=expect,
        read=allow_read,
        write=allow_write,
        net=allow_net,
        listen=allow_listen,
        env=allow_env,
        call=allow_call,
        sealed=sealed,
    )
    found = open_image(image)
    provision = RemoteProvision.instantiate(
        on, remote_proxy=remote_proxy, tls=tls, token=token, security_type=security_type
    )
    arguments = LoadArguments(
        name=name,
        policy=settings,
        functions=functions,
        allow_sim=allow_sim or None,
        platform=None if platform == "auto" else platform,
        tls=tls,
        caller=caller,
        timeout=timeout,
        stats=stats,
        trace=trace,
        stdout=stdout,
    )
    return load_enclave(found, provision, arguments)


def open_image(source: ImageSource, python: str | None = None) -> Image | str:
    """The image that `source` names, verified; or the measurement of one that a server is to have. ImageError, UsageError.

    `python`: which Python the packages of a .py file are for, such as "3.12", see `Wanted.chosen`; None: the environment says.
    """
    python = python or os.environ.get("ADYTON_PYTHON") or ""
    if isinstance(source, Image):
        return source
    if isinstance(source, Enclave):
        if source.source is None:
            raise UsageError(
                f"{source!r} was not made in a file, so there is nothing to load: load a .py or .enclave file"
            )
        return built_image(source.source, source.name, python)
    if not isinstance(source, str | os.PathLike):
        raise UsageError(f"{source!r} is no image: give the path of a .enclave or .py file, or a trusted.Enclave")
    path = os.fsdecode(source)
    if path.startswith("sha256:"):
        return path
    if not os.path.exists(path):
        raise UsageError(
            f"there is no file {path}: give a .enclave or .py file, or sha256:… of an image that the server has"
        )
    return built_image(path, None, python) if path.endswith(".py") else Image.open(path)


def load_enclave(image: Image | str, provision: RemoteProvision, arguments: LoadArguments) -> EnclaveClient:
    """Load through a proxy server got as `provision` says; it ends when the enclave's client closes, or when this raises."""
    image = open_image(image)
    platform = arguments.platform or _platform_of_environment()
    if platform not in ("auto", *PLATFORMS):
        raise UsageError(f"there is no platform {platform!r}: it is auto or one of {', '.join(PLATFORMS)}")
    timeout = checked_timeout(arguments.timeout) if arguments.timeout is not None else _timeout_of_environment()
    arguments = replace(
        arguments,
        timeout=timeout,
        stats=_writable("--stats", arguments.stats or os.environ.get("ADYTON_STATS")),
        trace=_writable("--trace", arguments.trace or os.environ.get("ADYTON_TRACE")),
    )
    if isinstance(image, str) and provision.local:
        raise UsageError(f"{image} names an image that a server has; a local enclave needs its file (or give --on)")
    policy = arguments.policy or Policy.read(os.environ.get("ADYTON_POLICY") or None).extended()
    expectation = _expectation(policy, image, arguments, local=provision.local)
    if provision.local:
        platform = _local_platform(platform, policy)
    name = arguments.name or (image if isinstance(image, str) else image.manifest.name)
    container = policy.container(image if isinstance(image, str) else image.manifest.name)
    host_calls = policy.host_calls(working_directory(arguments.config), container)
    own = provision.another()  # the caller's may be in use for another load
    try:
        return _connect(
            lambda: own.provision(image, platform, arguments.tls, timeout),
            own,
            host_calls,
            expectation,
            arguments,
            name,
            policy,
            container,
        )
    except BaseException:
        own.finalize()
        raise


def _local_platform(wanted: str, policy: Policy) -> str:
    """Of an enclave of this machine. Nobody named one: the hardware that is here, if the policy has a reference value for it; else it could only be refused.

    PlatformError: what was named is not here.
    """
    if wanted in ("auto", "sim"):
        knows_hardware = policy.acl is not None or bool(policy.expect and policy.expect.runtime)
        return wanted if knows_hardware else "sim"
    try:
        return attesters.chosen(wanted)
    except PlatformError as error:
        raise PlatformError(f"{error.message}. adyton doctor says what this machine has") from None


def load_in_process(application: TrustedApplication, arguments: LoadArguments) -> EnclaveClient:
    """Load an application of this process: no image, no sandbox, no proof. For tests."""
    policy = arguments.policy or Policy.read(None)
    name = arguments.name or str(getattr(application, "name", type(application).__name__))
    expectation = Expectation(platforms=["sim"], debug=True, measurement=[IN_PROCESS_MEASUREMENT])
    host_calls = policy.host_calls(working_directory(arguments.config))
    return _connect(lambda: in_process(application), None, host_calls, expectation, arguments, name, policy)


IN_PROCESS_MEASUREMENT = "sha256:" + "0" * 64


def _connect(
    provide: Callable[[], Transport],
    provision: RemoteProvision | None,
    host_calls: HostCallPolicy,
    expectation: Acl,
    arguments: LoadArguments,
    name: str,
    policy: Policy,
    container: str | None = None,
) -> EnclaveClient:
    """All that the caller can have got wrong is found before `provide` starts anything; if this raises, nothing is left of it."""
    config = arguments.config
    memory = policy.memory if provision is not None else "none"
    request = load_request(host_calls, config, name, arguments.stdout, _warn, policy.mounts, container, memory)
    caller = arguments.caller or Caller.from_environment()
    credential = None if caller is None else of_caller(caller)
    with contextlib.ExitStack() as undo:
        functions = HostFunctions(arguments.functions)
        output = StandardOutput(
            config.stdout_fd if config.HasField("stdout_fd") else arguments.stdout, config.stderr_fd
        )
        undo.callback(output.close)
        trace = None
        if arguments.trace is not None:
            trace = Trace(arguments.trace, visible(name))
            undo.callback(_close_trace, trace, {})
            request = msgspec.structs.replace(request, trace=True)
        telemetry = telemetry_of(visible(name), functions.names, _warn)
        exit_log = ExitLog(visible(name)) if arguments.exit_logging else None
        executor = Executor(
            host_calls,
            functions,
            denied=_say,
            output=output.write,
            standard_input=StandardInput(descriptor) if (descriptor := standard_input(config)) >= 0 else None,
            logs=[each for each in (exit_log, trace, telemetry) if each is not None],
        )
        with step(telemetry, "adyton.load"):
            proxy = _connected(
                provide,
                executor,
                expectation,
                request,
                arguments.timeout,
                trace,
                telemetry,
                credential,
                provision,
            )
        undo.callback(proxy.abort)
        end_of_metrics = arguments.metrics.start(name, proxy.processes) if arguments.metrics else None
        undo.pop_all()
    client = opened(name, proxy, provision, arguments.timeout)
    client.on_close(output.close)
    if telemetry is not None:
        client.on_close(telemetry.tell_traffic)
    if end_of_metrics is not None:
        client.on_close(end_of_metrics)
    if trace is not None:
        client.on_close(lambda: _close_trace(trace, client.stats()))
    stats = arguments.stats
    if stats is not None:
        client.on_close(lambda: _write_stats(stats, client.stats()))
    return client


def _connected(
    provide: Callable[[], Transport],
    executor: Executor,
    expectation: Acl,
    request: LoadRequest,
    timeout: float | None,
    trace: Trace | None,
    telemetry: Telemetry | None,
    credential: Credential | None,
    provision: RemoteProvision | None,
) -> ProxyClient:
    """`executor` is closed with what is returned, or when this raises. `timeout` bounds all of it, whatever its steps may take."""
    budget, limit = Budget(timeout), LOAD_TIMEOUT if timeout is None else None
    try:
        with step(telemetry, "adyton.provision"):
            transport = provide()
    except BaseException:
        executor.close()
        raise
    proxy = ProxyClient(transport, executor, expectation, trace, telemetry, credential)
    if provision is not None and request.remembers:
        executor.memory = SealedMemory(memory_folder(provision.place), lambda to: _owner_name(to, proxy.identity))
    try:
        reply = proxy.connect(request, budget.left(limit))
        for warning in reply.warnings:
            _warn(visible(warning))
        if provision is not None and proxy.identity is not None and proxy.identity.platform == "sim":
            _say(SIMULATED)
    except CallFailed as failed:
        raise error_of(failed) from None
    except BaseException:
        proxy.abort()
        raise
    return proxy


def _owner_name(to: To, identity: EnclaveIdentity | None) -> str:
    assert identity is not None  # who has proved nothing asks for nothing
    return owner_name(to, identity.measurement, identity.signer, identity.product_id)


def _expectation(policy: Policy, image: Image | str, arguments: LoadArguments, *, local: bool) -> Acl:
    """What the evidence must say: what the policy says of it, else what is safe for where the enclave runs."""
    allow_sim = arguments.allow_sim if arguments.allow_sim is not None else _flag("ADYTON_ALLOW_SIM")
    measurement = [image if isinstance(image, str) else image.measurement]
    expectation = policy.expect
    if expectation is not None:
        if not expectation.measurement and not expectation.signer:
            expectation = msgspec.structs.replace(expectation, measurement=measurement)
        platforms = expectation.platforms or _platforms(simulated=local or allow_sim)
        if allow_sim:
            platforms = list(dict.fromkeys([*platforms, "sim"]))
        expectation = msgspec.structs.replace(expectation, platforms=platforms, debug=expectation.debug or allow_sim)
    if policy.acl is not None:
        return policy.acl if expectation is None else AllOf(expectation, policy.acl)
    if expectation is not None:
        return expectation
    platforms = _platforms(simulated=local or allow_sim)
    return Expectation(platforms=platforms, measurement=measurement, debug=local or allow_sim or arguments.accept_debug)


def _platforms(*, simulated: bool) -> Sequence[str]:
    return [each for each in PLATFORMS if simulated or each != "sim"]


_YES, _NO = ("1", "t", "true", "y", "yes", "on"), ("0", "f", "false", "n", "no", "off")  # as click has them


def _flag(variable: str) -> bool:
    text = os.environ.get(variable, "").lower()
    if text not in ("", *_YES, *_NO):
        raise UsageError(f"{variable}={text}: it is 1 or 0")
    return text in _YES


def _platform_of_environment() -> str:
    platform = os.environ.get("ADYTON_PLATFORM") or "auto"
    config = os.environ.get("ADYTON_CONFIG")
    if not config:
        return platform
    if config not in CONFIGS:
        raise UsageError(f"ADYTON_CONFIG={config}: it is {' or '.join(CONFIGS)}")
    if platform not in ("auto", CONFIGS[config]):
        raise UsageError(
            f"ADYTON_CONFIG={config} means the platform {CONFIGS[config]}, and ADYTON_PLATFORM={platform} another: leave one out"
        )
    return CONFIGS[config]


def _timeout_of_environment() -> float | None:
    text = os.environ.get("ADYTON_TIMEOUT")
    if not text:
        return None
    try:
        timeout = float(text)
    except ValueError:
        timeout = 0.0
    if not 0 < timeout < math.inf:
        raise UsageError(f"ADYTON_TIMEOUT={text}: give a number of seconds above 0")
    return timeout


def _say(line: str) -> None:
    """What the policy's owner must see, unless standard error is closed."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


def _warn(text: str) -> None:
    _say(f"adyton: warning: {text}")


def _writable(option: str, path: str | None) -> str | None:
    """The path, None for none; UsageError, before anything is started, if the file cannot be written."""
    if not path:
        return None
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path) or not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise UsageError(f"{option} {path}: no file can be written there: name one in a folder of yours")
    return path


def _close_trace(trace: Trace, stats: dict[str, Any]) -> None:
    try:
        trace.close(stats)
    except OSError as error:
        _warn(f"the trace cannot be written to {trace.path}: {error.strerror}")


def _write_stats(path: str, stats: dict[str, Any]) -> None:
    try:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(stats, file)
            file.write("\n")
    except OSError as error:
        _warn(f"the statistics cannot be written to {path}: {error.strerror}")
