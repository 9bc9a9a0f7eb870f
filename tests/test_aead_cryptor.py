"""What AeadCryptor promises: what was sealed opens, anything else does not, and keys are not used beyond their bounds."""

import json
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adyton.crypto import aead
from adyton.errors import IntegrityError, ResourceLimitError, UsageError
from adyton.trusted import AeadCryptor

KEY = bytes(range(16))
MAKERS = [AeadCryptor.aes_gcm_siv, AeadCryptor.aes_gcm]
VECTORS = Path(__file__).parents[2] / "shared" / "vectors" / "wycheproof" / "testvectors_v1" / "aes_gcm_siv_test.json"

# RFC 8452, appendix C.1 and C.2: key, nonce, aad, plaintext, ciphertext and tag.
RFC_8452 = [
    ("01" + "00" * 15, "03" + "00" * 11, "", "", "dc20e2d83f25705bb49e439eca56de25"),
    ("01" + "00" * 15, "03" + "00" * 11, "", "0100000000000000", "b5d839330ac7b786578782fff6013b815b287c22493a364c"),
    ("01" + "00" * 15, "03" + "00" * 11, "01", "0200000000000000", "1e6daba35669f4273b0a1a2560969cdf790d99759abd1508"),
    ("01" + "00" * 31, "03" + "00" * 11, "", "0100000000000000", "c2ef328e5c71c83b843122130f7364b761e0b97427e3df28"),
]


# McGrew and Viega, "The Galois/Counter Mode of Operation", appendix B: test cases 1, 2, 13 and 14.
GCM = [
    ("00" * 16, "00" * 12, "", "", "58e2fccefa7e3061367f1d57a4e7455a"),
    ("00" * 16, "00" * 12, "", "00" * 16, "0388dace60b6a392f328c2b971b2fe78ab6e47d42cec13bdf53a67b21257bddf"),
    ("00" * 32, "00" * 12, "", "", "530f8afbc74536b9a963b4f1c4cb738b"),
    ("00" * 32, "00" * 12, "", "00" * 16, "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"),
]


@pytest.mark.parametrize(
    ("make", "known"),
    [*((AeadCryptor.aes_gcm_siv, each) for each in RFC_8452), *((AeadCryptor.aes_gcm, each) for each in GCM)],
    ids=[*(f"siv{n}" for n in range(len(RFC_8452))), *(f"gcm{n}" for n in range(len(GCM)))],
)
def test_known_messages_open_and_are_sealed_the_same_way(monkeypatch, make, known):
    key, nonce, aad, plaintext, sealed = known
    cryptor = make(bytes.fromhex(key))
    monkeypatch.setattr(aead.os, "urandom", lambda size: bytes.fromhex(nonce)[:size])
    assert cryptor.seal(bytes.fromhex(plaintext), bytes.fromhex(aad)).hex() == nonce + sealed
    assert cryptor.open(bytes.fromhex(nonce + sealed), bytes.fromhex(aad)).hex() == plaintext


@pytest.mark.skipif(not VECTORS.exists(), reason="NO VECTORS HERE: those of Wycheproof are not beside this checkout")
def test_wycheproof_vectors_open_or_do_not_as_they_say():
    seen = 0
    for group in json.loads(VECTORS.read_text())["testGroups"]:
        if group["ivSize"] != 96 or group["keySize"] not in (128, 256):
            continue
        for case in group["tests"]:
            cryptor = AeadCryptor.aes_gcm_siv(bytes.fromhex(case["key"]))
            sealed = bytes.fromhex(case["iv"] + case["ct"] + case["tag"])
            seen += 1
            if case["result"] == "valid":
                assert cryptor.open(sealed, bytes.fromhex(case["aad"])).hex() == case["msg"], case["tcId"]
            else:
                with pytest.raises(IntegrityError):
                    cryptor.open(sealed, bytes.fromhex(case["aad"]))
    assert seen > 100


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("size", [16, 32])
@given(plaintext=st.binary(max_size=300), aad=st.binary(max_size=40))
def test_what_was_sealed_opens(make, size, plaintext, aad):
    sealed = make(bytes(size)).seal(plaintext, aad)
    assert len(sealed) == 12 + len(plaintext) + 16
    assert make(bytes(size)).open(sealed, aad) == plaintext


@pytest.mark.parametrize("make", MAKERS)
@given(data=st.data())
def test_no_changed_bit_opens(make, data):
    sealed = bytearray(make(KEY).seal(b"the message", b"about it"))
    bit = data.draw(st.integers(0, len(sealed) * 8 - 1))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(IntegrityError):
        make(KEY).open(sealed, b"about it")


@pytest.mark.parametrize("make", MAKERS)
@given(garbage=st.binary(max_size=200))
def test_nothing_but_integrity_errors_leaves_open(make, garbage):
    with pytest.raises(IntegrityError):
        make(KEY).open(garbage)


@pytest.mark.parametrize("make", MAKERS)
def test_another_key_or_other_additional_data_does_not_open(make):
    sealed = make(KEY).seal(b"m", b"a")
    for key, aad in ((bytes(16), b"a"), (KEY, b""), (KEY, b"b")):
        with pytest.raises(IntegrityError, match="changed, or the key"):
            make(key).open(sealed, aad)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("key", [b"", bytes(15), bytes(24), bytes(33), "0123456789abcdef", 16])
def test_only_keys_of_16_and_32_bytes_are_taken(make, key):
    with pytest.raises(UsageError, match="16 or 32 bytes"):
        make(key)


def test_bytes_like_objects_are_taken():
    cryptor = AeadCryptor.aes_gcm_siv(bytearray(KEY))
    sealed = cryptor.seal(memoryview(b"message"), bytearray(b"aad"))
    assert cryptor.open(memoryview(sealed), memoryview(b"aad")) == b"message"


def test_nonces_are_fresh():
    cryptor = AeadCryptor.aes_gcm_siv(KEY)
    assert len({cryptor.seal(b"Asylo Rocks") for _ in range(64)}) == 64


def test_a_key_seals_no_more_messages_than_it_is_good_for():
    cryptor = AeadCryptor.aes_gcm(KEY)
    assert cryptor.max_sealed_messages == 1 << 32
    assert AeadCryptor.aes_gcm_siv(KEY).max_sealed_messages == 1 << 48
    cryptor.max_sealed_messages = 3
    sealed = [cryptor.seal(b"") for _ in range(3)]
    with pytest.raises(ResourceLimitError, match="take a new key"):
        cryptor.seal(b"")
    assert cryptor.open(sealed[0]) == b""


def test_the_count_holds_across_threads():
    cryptor = AeadCryptor.aes_gcm_siv(KEY)
    cryptor.max_sealed_messages = 100
    refused = []

    def work():
        for _ in range(50):
            try:
                cryptor.seal(b"x")
            except ResourceLimitError as error:
                refused.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 100


@pytest.mark.parametrize("make", MAKERS)
def test_messages_beyond_the_limit_are_refused(make):
    cryptor = make(KEY)
    cryptor.max_message_size = 10
    with pytest.raises(ResourceLimitError, match="the message is longer"):
        cryptor.seal(bytes(11))
    with pytest.raises(ResourceLimitError, match="additional data"):
        cryptor.seal(b"", bytes(11))
    with pytest.raises(ResourceLimitError):
        cryptor.open(bytes(11 + aead.OVERHEAD))
    assert cryptor.open(cryptor.seal(bytes(10))) == bytes(10)
