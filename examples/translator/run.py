"""A gRPC server in an enclave that listens on this machine's port.

python examples/translator/run.py --port 62831 --server_max_lifetime 300
"""

import subprocess
import sys
from pathlib import Path

if __name__ == "__main__":
    command = [sys.executable, "-m", "adyton.cli", "run", "translator", "--", *sys.argv[1:]]
    try:
        sys.exit(subprocess.run(command, cwd=Path(__file__).parent, check=False).returncode)
    except KeyboardInterrupt:
        sys.exit(130)
