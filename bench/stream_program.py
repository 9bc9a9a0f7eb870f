"""What runs in the enclave for `make bench-communicator` where arguments and results are streams."""

from collections.abc import Iterator


def take(items: Iterator[bytes]) -> int:
    return sum(len(each) for each in items)


def give(size: int, piece: int) -> Iterator[bytes]:
    whole = bytes(piece)
    for start in range(0, size, piece):
        yield whole[: size - start]
