"""The original's interface: a process-wide EnclaveManager that loads, names and destroys enclaves."""

from __future__ import annotations

import abc
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from adyton.attestation.acl import Acl
from adyton.client import EnclaveClient
from adyton.config import Policy
from adyton.errors import ClosedError, NameInUseError, UsageError
from adyton.loader import LoadArguments, load_enclave, load_in_process
from adyton.proto.enclave import EnclaveFinal, EnclaveLoadConfig
from adyton.provision.client import RemoteProvision
from adyton.remote.address import TLS
from adyton.remote.process_metrics import ProcessMetrics
from adyton.remote_loader_pb2 import remote_load_config
from adyton.sgx_loader_pb2 import sgx_load_config
from adyton.trusted.application import TrustedApplication

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider


class RemoteProxyClientConfig:
    """How a proxy client gets and reaches its proxy server. Made by `defaults_with_provision` or `create`."""

    def __init__(self, provision: RemoteProvision, tls: TLS | None) -> None:
        self.provision = provision
        self.tls = tls
        self.metrics: ProcessMetrics | None = None

    @classmethod
    def defaults_with_provision(cls, provision: RemoteProvision) -> RemoteProxyClientConfig:
        """With the connection settings of the environment."""
        return cls(provision, None)

    @classmethod
    def create(
        cls, provision: RemoteProvision, *, tls: TLS | None = None, dial_back: str | None = None
    ) -> RemoteProxyClientConfig:
        """With TLS files of its own. `dial_back`: wait there for the proxy server to dial, as RemoteProvision.dialled_back says. UsageError."""
        if not isinstance(provision, RemoteProvision) or not isinstance(tls, TLS | None):
            raise UsageError(f"create takes a RemoteProvision and an adyton.TLS, not {provision!r} and {tls!r}")
        return cls(provision if dial_back is None else provision.dialled_back(dial_back), tls)

    def enable_opentelemetry_metrics(
        self, granularity: float, view_name_root: str, meter_provider: MeterProvider | None = None
    ) -> None:
        """Show what the server says of the enclave's processes, polled each `granularity` seconds from the load to the close.

        Gauges `<view_name_root>/proc/stat/…` (see docs/metrics.md) of `meter_provider`, or of the one that this process has or will have.
        The numbers are the word of the server's operator, and no evidence. UsageError, also if OpenTelemetry is not installed.
        """
        self.metrics = ProcessMetrics.create(granularity, view_name_root, meter_provider)


@dataclass(frozen=True)
class LoadOrder:
    """All that an EnclaveLoader is given."""

    name: str
    load_config: EnclaveLoadConfig
    proxy_config: RemoteProxyClientConfig | None
    policy: Policy | None
    functions: Iterable[Callable[..., Any]]


class EnclaveLoader(abc.ABC):
    """The seam that EnclaveManager.load_enclave goes through."""

    @abc.abstractmethod
    def load(self, order: LoadOrder) -> EnclaveClient:
        """Load the enclave; raises an AdytonError."""


class RemoteEnclaveLoader(EnclaveLoader):
    """Loads images through provisioning: the loader that a manager has unless it is given another."""

    def load(self, order: LoadOrder) -> EnclaveClient:
        """See EnclaveLoader."""
        sgx = _loader_config(order.load_config)
        if sgx.WhichOneof("source") == "embedded_enclave_config":
            raise UsageError(
                "embedded_enclave_config: an embedded enclave cannot be loaded remotely; give file_enclave_config"
            )
        if sgx.HasField("fork_config"):
            raise UsageError(
                "fork_config: no snapshots are taken of enclaves; leave it out (os.fork() works in an enclave without it)"
            )
        path = sgx.file_enclave_config.enclave_path
        if not path:
            raise UsageError(
                "file_enclave_config.enclave_path is empty: give an image file, or the sha256:… of one that the server has"
            )
        tls = order.proxy_config.tls if order.proxy_config else None
        provision = order.proxy_config.provision if order.proxy_config else RemoteProvision.instantiate(tls=tls)
        return load_enclave(
            path,
            provision,
            LoadArguments(
                name=order.name,
                policy=order.policy,
                config=order.load_config.config,
                functions=order.functions,
                accept_debug=sgx.debug,
                exit_logging=order.load_config.exit_logging,
                tls=tls,
                metrics=order.proxy_config.metrics if order.proxy_config else None,
            ),
        )


def _loader_config(load_config: EnclaveLoadConfig) -> Any:
    config: Any = load_config  # the stubs know no extensions
    if config.HasExtension(remote_load_config):
        remote = config.Extensions[remote_load_config]
        if remote.WhichOneof("loader") is None:
            raise UsageError(
                "the RemoteLoadConfig names no loader: set its sgx_load_config.file_enclave_config.enclave_path"
            )
        return remote.sgx_load_config
    if config.HasExtension(sgx_load_config):
        return config.Extensions[sgx_load_config]
    raise UsageError("the EnclaveLoadConfig says nothing of where the enclave is: set its extension remote_load_config")


class FakeEnclaveLoader(EnclaveLoader):
    """For tests: runs an application of this process, without image, sandbox, sockets or proof.

    Calls take the same way through communicator, channel and type checks as with a real enclave; its evidence says `sim`.
    """

    def __init__(self, application: TrustedApplication | Callable[[], TrustedApplication]) -> None:
        """`application`: the same for all loads; or a class, or what else makes one, called for each load."""
        if not (isinstance(application, TrustedApplication) or callable(application)):
            raise UsageError(f"{application!r} is no application: give a TrustedApplication, or its class")
        self._application = application

    def load(self, order: LoadOrder) -> EnclaveClient:
        """See EnclaveLoader."""
        application = self._application
        return load_in_process(
            application if isinstance(application, TrustedApplication) else application(),
            LoadArguments(
                name=order.name,
                policy=order.policy,
                config=order.load_config.config,
                functions=order.functions,
                exit_logging=order.load_config.exit_logging,
            ),
        )


@dataclass(frozen=True)
class EnclaveManagerOptions:
    """`loader`: what load_enclave goes through; a FakeEnclaveLoader in tests."""

    loader: EnclaveLoader | None = None

    def __post_init__(self) -> None:
        """UsageError."""
        if not isinstance(self.loader, EnclaveLoader | None):
            raise UsageError(f"loader={self.loader!r}: give an EnclaveLoader")


class EnclaveManager:
    """Loads, names and destroys the enclaves of this process. Thread-safe."""

    _lock: ClassVar[threading.Lock] = threading.Lock()
    _instance: ClassVar[EnclaveManager | None] = None
    _options: ClassVar[EnclaveManagerOptions] = EnclaveManagerOptions()

    def __init__(self) -> None:
        self._clients: dict[str, EnclaveClient | None] = {}  # None: its load is under way

    @classmethod
    def configure(cls, options: EnclaveManagerOptions) -> None:
        """Set the options of loads from now on; may be called any number of times."""
        if not isinstance(options, EnclaveManagerOptions):
            raise UsageError(f"configure takes EnclaveManagerOptions, not {type(options).__name__}")
        with cls._lock:
            cls._options = options

    @classmethod
    def instance(cls) -> EnclaveManager:
        """The one manager of this process."""
        with cls._lock:
            if cls._instance is None:
                cls._instance = cls()
            return cls._instance

    def load_enclave(
        self,
        load_config: EnclaveLoadConfig,
        *,
        remote_proxy_config: RemoteProxyClientConfig | None = None,
        expect: Mapping[str, Any] | Acl | None = None,
        allow: Mapping[str, Any] | None = None,
        functions: Iterable[Callable[..., Any]] = (),
    ) -> EnclaveClient:
        """Load, initialize and name an enclave. `expect`, `allow`: the tables of a policy file; `expect` may be an `Acl`.

        The name is taken while the load is under way, but get_client returns the client only after initialize. NameInUseError if it is
        taken; else what the load raises, with nothing left behind.
        """
        if not isinstance(load_config, EnclaveLoadConfig):
            raise UsageError(f"load_enclave takes an EnclaveLoadConfig, not {type(load_config).__name__}")
        if not isinstance(remote_proxy_config, RemoteProxyClientConfig | None):
            raise UsageError(
                f"remote_proxy_config is {type(remote_proxy_config).__name__}: make one with RemoteProxyClientConfig.create(provision)"
            )
        name = load_config.name
        if not name:
            raise UsageError("the EnclaveLoadConfig has no name: set load_config.name")
        policy = Policy.of_environment(expect, allow)
        with self._lock:
            if name in self._clients:
                raise NameInUseError(f"an enclave {name!r} is loaded already: destroy it first, or take another name")
            self._clients[name] = None
            loader = self._options.loader or RemoteEnclaveLoader()
        try:
            client = loader.load(LoadOrder(name, load_config, remote_proxy_config, policy, functions))
            if not isinstance(client, EnclaveClient):
                raise UsageError(f"{type(loader).__name__}.load returned {client!r}: it must return an EnclaveClient")
        except BaseException:
            self._forget(name)
            raise
        with self._lock:
            self._clients[name] = client
        client.on_close(lambda: self._forget(name))
        return client

    def _forget(self, name: str) -> None:
        with self._lock:
            self._clients.pop(name, None)

    def get_client(self, name: str) -> EnclaveClient | None:
        """The enclave of that name; None while it is being loaded, and if there is none."""
        with self._lock:
            return self._clients.get(name)

    def get_name(self, client: EnclaveClient) -> str:
        """The client's name here, or ""."""
        if not isinstance(client, EnclaveClient):
            raise UsageError(
                f"this wants a client, and it is {type(client).__name__}: give what load_enclave or get_client returned"
            )
        with self._lock:
            return next((name for name, known in self._clients.items() if known and known.is_same(client)), "")

    def destroy_enclave(self, client: EnclaveClient | None, final: EnclaveFinal, skip_finalize: bool = False) -> None:
        """Finalize (unless skipped) and end the enclave, and forget its name, whatever finalize says; then raise what it said.

        Calls that are under way are not waited for: they raise ClosedError. None is no enclave, and nothing to do. ClosedError if it is
        destroyed already, or by another thread at this moment.
        """
        if not isinstance(final, EnclaveFinal):
            raise UsageError(
                f"destroy_enclave takes an EnclaveFinal, not {type(final).__name__}: nothing was destroyed"
            )
        if client is None:
            return
        if not self.get_name(client) or not client.finalize(final, skip=skip_finalize, wait=False):
            raise ClosedError(f"{client!r} is not an enclave of this manager, or was destroyed already")
