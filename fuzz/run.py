"""`make fuzz`: run targets with atheris, one after the other, each for some seconds.

What a run finds is written to build/fuzz/NAME-crash-…; hand that file to `--reproduce NAME FILE`. A run starts from the few seeds in
fuzz/corpus/NAME, and from what was grown from them (fuzz/grown/NAME.zip), and leaves both as they are: what it grows further is in
build/fuzz/corpus/NAME, and kept in fuzz/grown by `--keep`.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
SEEDS = HERE / "corpus"
GROWN = HERE / "grown"
BUILD = HERE.parent / "build" / "fuzz"
MAX_SIZE = 2048  # bytes of an input
MAX_MEMORY = 2048  # MiB
SLOWEST = 20  # seconds that one input may take


def main() -> int:
    """Run what the arguments say; 1 if something was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="targets (default: all)")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: 60)")
    parser.add_argument("--keep", action="store_true", help="fuzz nothing: keep what earlier runs have grown")
    parser.add_argument("--reproduce", nargs=2, metavar=("NAME", "FILE"), help="run one input, with its traceback")
    parser.add_argument("--child", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.reproduce:
        name, file = options.reproduce
        _targets()[name](Path(file).read_bytes())
        return 0
    try:
        import atheris
    except ImportError:
        print(
            f"fuzzing needs atheris, which there is for CPython 3.11 on x86-64 only, and this is {sys.version.split()[0]}: "
            "make the virtualenv with that one (make clean, then make fuzz PYTHON=python3.11)",
            file=sys.stderr,
        )
        return 2
    if options.child:
        name, *arguments = options.child
        with atheris.instrument_imports(include=["adyton", "tomllib"]):
            targets = _targets()
        atheris.Setup([f"fuzz {name}", *arguments], targets[name])
        atheris.Fuzz()
    known = _targets()
    if unknown := set(options.names) - set(known):
        parser.error(f"unknown targets: {', '.join(sorted(unknown))}; known are {', '.join(known)}")
    if options.keep:
        for name in options.names or known:
            _keep(name)
        return 0
    found = [name for name in options.names or known if not _fuzz(name, options.seconds)]
    print(f"found something: {', '.join(found)}" if found else "nothing found")
    return 1 if found else 0


def _targets():  # type: ignore[no-untyped-def]  # noqa: ANN202 - imported late, to be instrumented
    import targets

    return targets.TARGETS


def _fuzz(name: str, seconds: int) -> bool:
    """One target, in a process of its own; whether it found nothing."""
    grown = BUILD / "corpus" / name
    if not grown.exists():
        grown.mkdir(parents=True)
        if (kept := GROWN / f"{name}.zip").exists():
            zipfile.ZipFile(kept).extractall(grown)
    arguments = [
        f"-max_total_time={seconds}",
        f"-max_len={MAX_SIZE}",
        f"-rss_limit_mb={MAX_MEMORY}",
        f"-timeout={SLOWEST}",
        f"-artifact_prefix={BUILD}/{name}-",
        str(grown),
        str(SEEDS / name),
    ]
    done = subprocess.run(
        [sys.executable, __file__, "--child", name, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    output = done.stdout.decode("utf-8", "replace")
    runs = re.search(r"Done (\d+) runs in (\d+) second", output)
    if done.returncode == 0 and runs:
        print(f"{name:<18}{int(runs[1]):>12,} executions in {runs[2]} s", flush=True)
        return True
    print(f"{name}: ended with {done.returncode}\n{output[-8000:]}", flush=True)
    return False


def _keep(name: str) -> None:
    """The same archive of the same inputs."""
    inputs = sorted((BUILD / "corpus" / name).glob("*"))
    if inputs:
        GROWN.mkdir(exist_ok=True)
        with zipfile.ZipFile(GROWN / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as kept:
            for each in inputs:
                kept.writestr(zipfile.ZipInfo(each.name), each.read_bytes(), zipfile.ZIP_DEFLATED)


if __name__ == "__main__":
    sys.exit(main())
