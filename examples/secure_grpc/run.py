"""A gRPC server and its client, each in an enclave, and each says whom it accepts.

python examples/secure_grpc/run.py --word asylo
"""

import subprocess
import sys
from pathlib import Path

if __name__ == "__main__":
    command = [sys.executable, "-m", "adyton.cli", "run", "secure_grpc", "--", *sys.argv[1:]]
    try:
        sys.exit(subprocess.run(command, cwd=Path(__file__).parent, check=False).returncode)
    except KeyboardInterrupt:
        sys.exit(130)
