"""The standard library's logging as the client's EnclaveConfig.logging_config sets it up, before any of the program's code runs."""

from __future__ import annotations

import logging
import posixpath

from adyton.communicator.messages import Logging

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def set_up(settings: Logging, name: str) -> list[str]:
    """Log to a file named like the enclave, opened as any other file of the client's, or to standard error; warnings."""
    warnings = []
    handler: logging.Handler | None = None
    if settings.directory:
        path = posixpath.join(settings.directory, posixpath.basename(name) or "enclave")
        try:
            handler = logging.FileHandler(path, encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            warnings.append(
                f"the log file {path} cannot be opened: {reason}; log lines go to standard error. Allow it with --allow-write {path}"
            )
    logging.basicConfig(
        format=FORMAT,
        level=logging.DEBUG if settings.verbosity > 0 else logging.INFO,
        handlers=[handler or logging.StreamHandler()],
        force=True,
    )
    return warnings
