"""A secret that one program gets and a changed one does not, and the log that says so.

python examples/broker/run.py --message "Asylo Rocks"
"""

import argparse
import contextlib
import hashlib
import hmac
import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import adyton

ENCLAVE = Path(__file__).parent / "tagger_enclave.py"
COMMAND = [sys.executable, "-m", "adyton.cli"]
CONFIG = """[secret.tagging]
file = "tagging"
[secret.tagging.expect]
platforms = ["sim"]            # a simulation proves nothing: this is an example
measurement = ["{measurement}"]
debug = true
"""


@contextlib.contextmanager
def broker(folder: Path, secret: bytes, measurement: str) -> Iterator[tuple[str, str]]:
    """One that gives the secret to that image: its address and its key's digest."""
    file = os.open(folder / "tagging", os.O_WRONLY | os.O_CREAT, 0o600)
    with open(file, "wb") as written:
        written.write(secret)
    (folder / "broker.toml").write_text(CONFIG.format(measurement=measurement))
    arguments = ["broker", "--config", str(folder / "broker.toml"), "--listen", "127.0.0.1:0"]
    with subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        address = process.stdout.readline().rpartition(" ")[2].strip()
        key = next(line for line in process.stderr if " key " in line).rpartition(" ")[2].strip()
        yield address, key
        process.terminate()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--message", default="Asylo Rocks", help="what is tagged; default: %(default)s")
    message = parser.parse_args().message
    secret = secrets.token_bytes(32)
    inspected = subprocess.run([*COMMAND, "inspect", str(ENCLAVE), "--json"], stdout=subprocess.PIPE, check=True)
    measurement = json.loads(inspected.stdout)["measurement"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        changed = folder / "tagger_enclave.py"
        changed.write_text(ENCLAVE.read_text() + "\n# changed\n")
        try:
            with broker(folder, secret, measurement) as (address, key):
                with adyton.load(ENCLAVE, allow_net=[address]) as tagger:
                    tag = tagger.call("tag", message, address, key)
                print(f"The program's tag: {tag}")
                print(f"It is the secret's: {tag == hmac.digest(secret, message.encode(), hashlib.sha256).hex()}")
                with adyton.load(changed, allow_net=[address]) as tagger:
                    try:
                        tagger.call("tag", message, address, key)
                    except PermissionError as error:
                        print(f"A changed program: {error}")
        except adyton.AdytonError as error:
            print(f"broker: {error}", file=sys.stderr)
            return error.exit_code
        subprocess.run([*COMMAND, "broker", "verify", str(folder / "broker.log")], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
