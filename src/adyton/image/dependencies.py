"""What an image may depend on: today the packages that are the runtime's own, in the versions that its ABI stands for.

The layer for locked dependencies has its media type (`adyton.image.oci.DEPENDENCY_LAYER`); nothing fills it yet, so anything else is
refused rather than found missing in the enclave.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from adyton._version import __version__
from adyton.errors import UsageError
from adyton.image.manifest import ABI, RUNTIME_PACKAGES
from adyton.image.versions import VersionError, VersionRange, parse_release

# PEP 508: name, extras, and a version specifier with or without parentheses; then an environment marker.
_REQUIREMENT = re.compile(
    r"\s*(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\s*(?P<extras>\[[^\]]*\])?\s*"
    r"(?:\((?P<inner>[^()]*)\)|(?P<versions>[^()@;]*))(?P<rest>[@;].*)?",
    re.DOTALL,
)


def check_dependencies(dependencies: Iterable[str], where: str) -> None:
    """UsageError for a requirement that the runtime does not fulfil by itself."""
    own = re.match(r"[0-9.]*[0-9]", __version__)
    have = {**RUNTIME_PACKAGES, "adyton": own[0] if own else "0"}
    for text in dependencies:
        match = _REQUIREMENT.fullmatch(text)
        if match is None:
            raise UsageError(f"{where}: {text!r} is not a requirement such as cryptography>=46")
        name = re.sub(r"[-_.]+", "-", match["name"]).lower()
        if name not in have:
            raise UsageError(
                f"{where}: {text!r} cannot be put into an image yet: of packages, an enclave has the runtime's own"
                f" ({', '.join(sorted(have))}). Pure Python code can be named in `sources`"
            )
        if (match["rest"] or "").startswith("@"):
            raise UsageError(
                f"{where}: {text!r} names a source, but {name} is the runtime's own: remove what is behind the @"
            )
        try:
            wanted = VersionRange.parse(match["inner"] or match["versions"] or "")
        except VersionError as error:
            raise UsageError(f"{where}: {text!r}: {error}") from error
        if parse_release(have[name]) not in wanted:
            raise UsageError(
                f"{where}: {text!r} conflicts with the runtime, which has {name} {have[name]} (ABI {ABI}): widen the range"
            )
