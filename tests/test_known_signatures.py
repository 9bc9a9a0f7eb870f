"""What a server remembers of signatures: those of the last images, the newest of each."""

import pytest

from adyton.errors import NotFoundError
from adyton.provision.signatures import MAX_IMAGES, KnownSignatures


def test_the_newest_signatures_of_the_images_loaded_last():
    known = KnownSignatures()
    known.remember("a", [b"old"])
    known.remember("a", [b"new", b"newer"])
    assert known.of("a") == [b"new", b"newer"]
    for number in range(MAX_IMAGES - 1):
        known.remember(str(number), [b"x"])
    known.remember("a", [b"new"])  # used again
    known.remember("one more", [b"y"])
    assert (known.of("a"), known.of("one more"), known.of("1")) == ([b"new"], [b"y"], [b"x"])
    with pytest.raises(NotFoundError, match="no image 0: load it from its file"):
        known.of("0")
