"""What runs in the enclave for `make bench-communicator`."""


def empty(data: bytes) -> bytes:
    return data


def take(data: bytes) -> int:
    return len(data)


def give(size: int) -> bytes:
    return bytes(size)
