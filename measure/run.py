"""Coverage of all of the product's processes in one report: `python measure/run.py [pytest's arguments]`.

coverage.py measures every ordinary Python that the tests start, and enclave_arcs the zygotes, supervisors and guests. The report is
of lines and branches together, each folder of the package on a line of its own; what is left out is in pyproject.toml, with
reasons. Not measured, so that what only they run counts as not run: processes that a test starts with an empty environment, or as
another user, with what these start; and what an ordinary process did that ended by SIGKILL. Sources must not change meanwhile. Exit
code: pytest's, or 2 if there is too little.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import coverage
import enclave_arcs
from enclave_plugin import FOLDER, TABLE

ROOT = Path(FOLDER).parent
DATA = Path(TABLE).parent
PACKAGE = ROOT / "src/adyton"


def main(arguments: list[str]) -> int:
    os.chdir(ROOT)
    shutil.rmtree(DATA, ignore_errors=True)
    DATA.mkdir()
    DATA.chmod(0o1777)  # some tests start processes as another user
    with open(TABLE, "wb") as table:
        table.truncate(enclave_arcs.SIZE)
    Path(TABLE).chmod(0o666)
    path_file = Path(
        sysconfig.get_path("purelib"), "a0_adyton_measure.pth"
    )  # in force with -I too, and before coverage.py.s
    path_file.write_text(f"{FOLDER}\n")
    try:
        tests = subprocess.run([sys.executable, "-m", "coverage", "run", "-m", "pytest", *arguments], check=False)
    finally:
        path_file.unlink()
    enclaves = _of_enclaves()
    print(f"{sum(map(len, enclaves.values()))} arcs of zygotes, supervisors and guests in {len(enclaves)} files")
    data = coverage.CoverageData(basename=str(DATA / ".coverage.enclaves"))
    data.add_arcs(enclaves)
    data.write()
    measured = coverage.Coverage(config_file=str(ROOT / "pyproject.toml"))
    measured.combine()
    measured.save()
    measured.json_report(outfile=str(DATA / "report.json"))
    measured.html_report(directory=str(DATA / "html"))
    total = measured.report(show_missing=True, skip_covered=True)
    for name, share in _folders(json.loads((DATA / "report.json").read_text())):
        print(f"{share:6.1f} %  {name}")
    least = float(str(measured.get_option("report:fail_under")))
    if total < least:
        print(f"{total:.1f} % of lines and branches: less than {least:g} %")
    return tests.returncode or (2 if total < least else 0)


def _of_enclaves() -> dict[str, list[tuple[int, int]]]:
    names = {enclave_arcs.file_number(str(path.relative_to(ROOT / "src"))): str(path) for path in PACKAGE.rglob("*.py")}
    found = defaultdict(list)
    with open(TABLE, "rb") as table:
        for file, first, last in enclave_arcs.arcs(memoryview(table.read()).cast("Q")):
            found[names[file]].append((first, last))
    return found


def _folders(report: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Per cent of lines and branches of each folder of the package; its modules without a folder are one."""
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for name, file in report["files"].items():
        folder = "/".join(Path(name).relative_to("src/adyton").parts[:-1]) or "."
        summary = file["summary"]
        sums[folder][0] += summary["covered_lines"] + summary["covered_branches"]
        sums[folder][1] += summary["num_statements"] + summary["num_branches"]
    for folder, (covered, all_of_it) in sorted(sums.items()):
        yield folder, 100 * covered / (all_of_it or 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
