"""Has one enclave ask another, then has each meet one that it does not accept.

adyton run secure_grpc -- --word asylo
"""

import argparse
import sys

import adyton


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("server", "client", "stranger", "impostor"):
        parser.add_argument(f"--{name}", required=True, metavar="IMAGE")
    parser.add_argument("--word", default="asylo", help="default: %(default)s")
    flags = parser.parse_args()
    listens = {"allow_listen": ["127.0.0.1:0"]}
    dials = {"allow_net": ["127.0.0.1"]}
    try:
        with (
            adyton.load(flags.server, name="server", **listens) as server,
            adyton.load(flags.client, name="client", **dials) as client,
        ):
            address = f"127.0.0.1:{server.call('start', '127.0.0.1:0')}"
            print(f"{flags.word}: {client.call('ask', address, flags.word)}", flush=True)
            with adyton.load(flags.stranger, name="stranger", **dials) as stranger:
                refused("The server refuses another client", stranger, address)
            with adyton.load(flags.impostor, name="impostor", **listens) as impostor:
                elsewhere = f"127.0.0.1:{impostor.call('start', '127.0.0.1:0')}"
                refused("The client refuses another server", client, elsewhere)
    except adyton.AdytonError as error:
        print(f"secure_grpc: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def refused(what: str, client: adyton.EnclaveClient, address: str) -> None:
    """Say so, or that it was not."""
    try:
        client.call("ask", address, "asylo")
    except adyton.EnclaveError as error:
        print(f"{what}: {error.message}", flush=True)
    else:
        print(f"{what}: NO", flush=True)


if __name__ == "__main__":
    sys.exit(main())
