"""The application: it loads the demo's enclave, has it encrypt a message, and prints the outcome.

adyton run quickstart -- --message "Asylo Rocks"
"""

import argparse
import sys

from adyton import (
    AdytonError,
    EnclaveFinal,
    EnclaveInput,
    EnclaveLoadConfig,
    EnclaveManager,
    EnclaveManagerOptions,
    RemoteProvision,
    RemoteProxyClientConfig,
    remote_load_config,
    user_message,
)


def encrypt(enclave_path: str, message: str, remote_proxy: str | None) -> str:
    """Nonce, ciphertext and tag in hex digits, as the enclave made them."""
    EnclaveManager.configure(EnclaveManagerOptions())
    manager = EnclaveManager.instance()
    load_config = EnclaveLoadConfig(name="demo_enclave")
    proxy_config = RemoteProxyClientConfig.defaults_with_provision(
        RemoteProvision.instantiate(remote_proxy=remote_proxy)
    )
    remote_config = load_config.Extensions[remote_load_config]
    remote_config.sgx_load_config.debug = True
    remote_config.sgx_load_config.file_enclave_config.enclave_path = enclave_path
    manager.load_enclave(load_config, remote_proxy_config=proxy_config)

    client = manager.get_client("demo_enclave")
    enclave_input = EnclaveInput()
    enclave_input.Extensions[user_message] = message
    try:
        output = client.enter_and_run(enclave_input)
    finally:
        manager.destroy_enclave(client, EnclaveFinal(), skip_finalize=False)
    return output.Extensions[user_message]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--enclave_path", default="", help="image of the demo's enclave")
    parser.add_argument("--message", default="", help="what to encrypt")
    parser.add_argument(
        "--remote_proxy", default=None, help="command that starts a proxy server; default: adyton's own"
    )
    flags = parser.parse_args()
    for name in ("enclave_path", "message"):
        if not getattr(flags, name):
            print(f"Empty --{name} flag.", file=sys.stderr)
            return 2
    try:
        encrypted = encrypt(flags.enclave_path, flags.message, flags.remote_proxy)
    except AdytonError as error:
        print(f"demo_driver: {error}", file=sys.stderr)
        return error.exit_code
    print("Encrypted message:")
    print(encrypted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
