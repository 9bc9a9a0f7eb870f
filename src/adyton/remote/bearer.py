"""The token that a client shows a server, as both read it from a file. Without grpc."""

from __future__ import annotations

from adyton.errors import UsageError

MAX_TOKEN = 4096  # characters; gRPC takes 8 KiB of metadata in all


def read_token(path: str | None) -> str:
    """The token in a file, without the white space around it; "" for no file. UsageError says what is wrong with it."""
    if path is None:
        return ""
    if not path:
        raise UsageError("the name of the token file is empty: give its path, or leave --token-file out")
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_TOKEN + 1)
    except OSError as error:
        raise UsageError(f"cannot read the token file {path}: {error.strerror}") from None
    if len(data) > MAX_TOKEN:
        raise UsageError(f"the token file {path} is larger than {MAX_TOKEN} bytes: is it the right file?")
    try:
        token = data.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise UsageError(f"the token file {path} is not text: write a secret of your choice into it") from None
    if not token:
        raise UsageError(f"the token file {path} is empty: write a secret of your choice into it")
    if "\n" in token:
        raise UsageError(f"the token file {path} has several lines: a token is one")
    return check_token(token, f"the token in {path}")


def check_token(token: str, what: str = "the token") -> str:
    """The token, if HTTP headers can carry it; UsageError if not. It is never shown."""
    if not token:
        raise UsageError(f"{what} is empty: leave it out if the server wants none")
    if len(token) > MAX_TOKEN:
        raise UsageError(f"{what} is longer than {MAX_TOKEN} characters: make a shorter one")
    if not (token.isascii() and token.isprintable()):
        raise UsageError(
            f"{what} has characters that no HTTP header takes: use letters, digits and punctuation of ASCII"
        )
    return token
