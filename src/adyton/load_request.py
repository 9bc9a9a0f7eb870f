"""What an enclave is told when it is loaded: the client's policy and EnclaveConfig, judged, with what they leave out filled in.

field of EnclaveConfig          left out                    here
stdin_fd, stdout_fd, stderr_fd  no input; 1; 2              descriptors of this process (hostcall.client.streams)
host_name                       this machine's              gethostname() in the enclave
current_working_directory       this process'               an absolute path of this machine
environment_variables           none                        the first of a name holds; what allow_env gives comes before
logging_config                  the program's own business  the enclave's logging, set up before its code is imported
-                               this process' umask         what the program's files are made with, here and there
enable_fork                     -                           nothing: os.fork() always works in an enclave
enclave_assertion_…_configs     -                           for the program only; a warning says so
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress

from adyton.communicator import messages
from adyton.communicator.messages import Grant, LoadRequest, Logging, Streams
from adyton.config import Memory, Mount
from adyton.errors import UsageError
from adyton.hostcall.client.paths import spellings
from adyton.hostcall.client.policy import HostCallPolicy
from adyton.hostcall.environment import check_environment, check_variable, is_host_name, is_time_zone
from adyton.hostcall.own_paths import own_path
from adyton.proto.enclave import EnclaveConfig


def working_directory(config: EnclaveConfig) -> str:
    """Where the enclave starts; UsageError unless it is an absolute path of a directory."""
    if not config.HasField("current_working_directory"):
        return os.getcwd()
    directory = config.current_working_directory
    if not os.path.isabs(directory):
        raise UsageError(
            f"current_working_directory: {directory!r} is not an absolute path; write {os.path.abspath(directory)}"
        )
    if not os.path.isdir(directory):
        raise UsageError(f"current_working_directory: there is no directory {directory} on this machine; make it first")
    return os.path.normpath(directory)


def load_request(
    policy: HostCallPolicy,
    config: EnclaveConfig,
    name: str,
    stdout: int,
    warn: Callable[[str], object],
    mounts: Iterable[Mount] = (),
    container: str | None = None,
    memory: Memory = "kept",
) -> LoadRequest:
    """The request of an enclave that is loaded as `name`. UsageError for what cannot be; `warn` is given what only may be unexpected.

    `stdout`: what stdout_fd is where the config does not say. What the program's initialize receives is `config` with host name,
    working directory and standard output as they are. `container`: of sealed files; `memory`: of those on a server's disk.
    """
    full = EnclaveConfig()
    full.CopyFrom(config)
    full.host_name = _host_name(config)
    full.current_working_directory = directory = policy.working_directory
    if not config.HasField("stdout_fd"):
        full.stdout_fd = stdout
    if (own := own_path(directory)) is not None:
        warn(f"the working directory {directory} is a name of the enclave's own ({own}); it starts in /enclave")
        directory = "/enclave"
    if config.enclave_assertion_authority_configs:
        warn("enclave_assertion_authority_configs go to the program's initialize; nothing else uses them")
    environment = _environment(policy, config)
    return LoadRequest(
        config=full.SerializeToString(),
        grants=[Grant(grant.path, grant.right) for grant in policy.grants()],
        working_directory=directory,
        sealed=container or "",
        remembers=memory != "none",
        demands_memory=memory == "required",
        time_zone=environment.get("TZ", _time_zone()),
        environment=environment,
        name=name,
        host_name=full.host_name,
        streams=Streams(
            stdin=standard_input(config) >= 0,
            stdout=full.stdout_fd >= 0,
            stderr=config.stderr_fd >= 0,
        ),
        logging=_logging(config),
        umask=_umask(),
        coherence=[messages.Mount(path, mount.coherence) for mount in mounts for path in spellings(mount.path)],
    )


def standard_input(config: EnclaveConfig) -> int:
    """The descriptor behind the enclave's standard input; -1: none. Only what was said explicitly: a load must not take a terminal's."""
    return config.stdin_fd if config.HasField("stdin_fd") else -1


def _host_name(config: EnclaveConfig) -> str:
    if not config.HasField("host_name"):
        name = socket.gethostname()
        return name if is_host_name(name) else "enclave"
    if not is_host_name(config.host_name):
        raise UsageError(
            f"host_name: {config.host_name!r} is no name of a machine; take 1 to 64 letters, digits, dots, hyphens and underscores"
        )
    return config.host_name


def _environment(policy: HostCallPolicy, config: EnclaveConfig) -> dict[str, str]:
    environment = policy.environment(os.environ)
    for number, variable in enumerate(config.environment_variables, 1):
        for field in ("name", "value"):
            if not variable.HasField(field):
                said = f" ({variable.name})" if variable.name else ""
                raise UsageError(
                    f"environment_variables: number {number}{said} has no {field}: set both name and value"
                )
        environment.setdefault(check_variable(variable.name, "environment_variables"), variable.value)
    check_environment(environment)
    if not is_time_zone(environment.get("TZ", "")):
        raise UsageError(f"environment: TZ={environment['TZ']!r} is no time zone; take a name such as Europe/Paris")
    return environment


def _logging(config: EnclaveConfig) -> Logging | None:
    if not config.HasField("logging_config"):
        return None
    directory = config.logging_config.log_directory
    if "\0" in directory:
        raise UsageError("logging_config: log_directory holds a NUL, which no path can")
    return Logging(max(0, config.logging_config.vlog_level), directory)


def _umask() -> int:
    """The umask of this process, which umask(2) could only tell by setting another: proc_pid_status(5)."""
    with suppress(OSError), open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith(b"Umask:"):
                return int(line.split()[1], 8)
    return 0o022


def _time_zone() -> str:
    """The client's time zone as a value for TZ; "" where it is UTC or unknown."""
    zone = os.environ.get("TZ")
    if zone is None:
        try:
            _, marker, zone = os.path.realpath("/etc/localtime").partition("/zoneinfo/")
        except OSError:
            return ""
        zone = zone if marker else ""
    zone = zone.removeprefix(":")
    return zone if is_time_zone(zone) else ""
