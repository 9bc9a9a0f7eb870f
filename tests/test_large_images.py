"""Images as large as today's libraries: built, uploaded, verified and loaded in pieces."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from thorough import few_or

pytestmark = pytest.mark.sandbox

SIZE = few_or(160, 300) << 20
MOST_MEMORY = 150 << 10  # KiB that the client's processes may have: they have some 60 at rest

PROGRAM = """
import os

from adyton import trusted

app = trusted.Enclave("app")


@app.entry
def look() -> list[str]:
    import heavy

    with open(heavy.DATA, "rb") as file:
        file.seek(-4, 2)
        return [str(os.stat(heavy.DATA).st_size), file.read().decode()]
"""


# Runs the command line, and says then how much memory it had at most: of what it is executed from nothing counts.
MEASURED = """
import sys
from adyton.cli.root import run

try:
    run(sys.argv[1:])
finally:
    with open("/proc/self/status") as file:
        print(*(line for line in file if line.startswith("VmHWM:")), file=sys.stderr)
"""


def run(*arguments):
    """`adyton ARGUMENTS`: standard output, and the most memory that the process had, in KiB."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *arguments], capture_output=True, text=True, timeout=100, check=True
    )
    return done.stdout, int(re.findall(r"VmHWM:\s*(\d+) kB", done.stderr)[0])


@pytest.mark.long
def test_a_large_image_builds_and_loads_in_little_memory(wheels, workplace):
    (workplace / "app.py").write_text(PROGRAM)
    (workplace / "pyproject.toml").write_text(
        '[tool.adyton.enclave.app]\nentry = "app:app"\ndependencies = ["heavy"]\n'
    )
    data = bytes(SIZE - 4) + b"end."
    module = b"import os\nDATA = os.path.join(os.path.dirname(__file__), 'heavy.bin')\n"
    wheels.add("heavy", "1.0", {"heavy.py": module, "heavy.bin": data})
    _, built_in = run("build")
    assert os.path.getsize("build/app.enclave") > SIZE
    said, loaded_in = run("call", "build/app.enclave", "look")
    assert said.strip() == f'["{SIZE}","end."]'
    assert max(built_in, loaded_in) < MOST_MEMORY
