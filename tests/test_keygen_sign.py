"""Keys, envelopes, and which signature of an image counts."""

import base64
import errno
import json
import os
import stat
import subprocess

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from adyton.cli.keygen import command as keygen
from adyton.cli.sign import command as sign
from adyton.crypto.digest import digest_of
from adyton.crypto.keys import PublicKey, SigningKey, debug_key
from adyton.errors import AdytonError, ImageError, SignatureError, UsageError
from adyton.image import dsse
from adyton.image.manifest import Manifest, canonical_json
from adyton.image.oci import Image
from adyton.image.sign import add_signature, sign_image, verified_signature
from adyton.image.signature import PAYLOAD_TYPE, Payload, make_signature, read_signature


def run(command, *arguments):
    return CliRunner().invoke(command, [str(each) for each in arguments], catch_exceptions=False)


@pytest.fixture
def image():
    manifest = Manifest(name="pay", entry="pay:", entries=[], product_id=7, security_version=3)
    return Image.create(manifest, {"pay.py": b"pass\n"})


@pytest.fixture
def image_file(image, workplace):
    path = workplace / "pay.enclave"
    image.save(path)
    return path


# -- keys ----------------------------------------------------------------------------------------------------------------


def test_keygen_writes_a_private_and_a_public_file_and_prints_the_signer(workplace):
    done = run(keygen, workplace / "k")
    key = SigningKey.load(workplace / "k")
    assert done.output == key.signer + "\n"
    assert stat.S_IMODE(os.stat(workplace / "k").st_mode) == 0o600
    pem = (workplace / "k.pub").read_text()
    body = base64.b64decode("".join(pem.splitlines()[1:-1]))
    assert digest_of(body) == key.signer


def test_a_key_that_finds_no_room_is_named_and_not_left_behind(workplace, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match=r"cannot be written to k\.pub: No space left on device"):
        SigningKey.generate().save("k")
    assert list(workplace.iterdir()) == []


def test_keygen_as_json(workplace):
    said = json.loads(run(keygen, "k", "--json").output)
    assert said == {"path": "k", "signer": SigningKey.load("k").signer}


@pytest.mark.parametrize("taken", ["k", "k.pub"])
def test_keygen_never_overwrites_and_leaves_nothing_half_made(workplace, taken):
    (workplace / taken).write_text("mine")
    with pytest.raises(UsageError, match="never overwritten"):
        run(keygen, "k")
    assert sorted(os.listdir(workplace)) == [taken]
    assert (workplace / taken).read_text() == "mine"


def test_keygen_does_not_write_through_a_link(workplace):
    (workplace / "k").symlink_to(workplace / "elsewhere")
    with pytest.raises(UsageError):
        run(keygen, "k")
    assert not (workplace / "elsewhere").exists()


def test_keygen_into_a_folder_that_is_not_there_says_so(workplace):
    with pytest.raises(UsageError, match="No such file"):
        run(keygen, workplace / "none" / "k")


def test_keys_that_are_none_are_refused_with_what_they_are(workplace):
    SigningKey.generate().save("k")
    with pytest.raises(UsageError, match="looks like a public key"):
        SigningKey.load("k.pub")
    with pytest.raises(UsageError, match="adyton keygen"):
        SigningKey.load("nothing")
    (workplace / "text").write_text("hello")
    with pytest.raises(UsageError, match="not an unencrypted private key"):
        SigningKey.load("text")


def test_a_key_of_another_algorithm_is_refused(workplace):
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = ec.generate_private_key(ec.SECP256R1())
    (workplace / "ec").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(UsageError, match="Ed25519"):
        SigningKey.load("ec")


def test_the_debug_key_is_the_same_for_everybody():
    assert debug_key().signer == "sha256:6b7eec1a7b0d55c44b232637c2e7955de78ad9c635df5f35286197df6a5ce369"


@given(st.binary(max_size=120))
def test_only_value_errors_leave_the_reader_of_public_keys(data):
    with pytest.raises(ValueError):
        PublicKey.from_der(data)


# -- envelopes -----------------------------------------------------------------------------------------------------------


def test_the_pre_authentication_encoding_is_that_of_the_specification():
    # secure-systems-lab/dsse, protocol.md, test vectors
    assert (
        dsse.pre_authentication_encoding("http://example.com/HelloWorld", b"hello world")
        == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


@given(st.text(max_size=30), st.binary(max_size=60))
def test_an_envelope_opens_to_what_was_signed(kind, payload):
    opened = dsse.open_envelope(dsse.sign(kind, payload, debug_key()))
    assert (opened.payload_type, opened.payload, opened.signer, opened.valid) == (
        kind,
        payload,
        debug_key().signer,
        True,
    )


def test_signing_is_reproducible(image):
    assert make_signature(image.measurement, image.manifest, debug_key()) == make_signature(
        image.measurement, image.manifest, debug_key()
    )


@given(st.binary(max_size=400))
def test_only_signature_errors_leave_the_reader_of_envelopes(data):
    with pytest.raises(SignatureError):
        dsse.open_envelope(data)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["payload", "payloadType", "sig", "x"]), inner)
    ),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries(
        {
            "payload": _json | st.binary(max_size=20).map(lambda raw: base64.b64encode(raw).decode()),
            "payloadType": _json,
            "signatures": _json
            | st.lists(st.fixed_dictionaries({"keyid": _json, "public_key": _json, "sig": _json}), max_size=2),
        }
    )
)
def test_envelopes_of_nearly_the_right_shape_are_signature_errors(content):
    with pytest.raises(SignatureError):
        dsse.open_envelope(json.dumps(content).encode())


@given(data=st.data())
def test_no_changed_byte_of_an_envelope_stays_valid(data):
    manifest = Manifest(name="pay", entry="pay:", entries=[])
    measurement = "sha256:" + "0" * 64
    envelope = bytearray(make_signature(measurement, manifest, debug_key()))
    place = data.draw(st.integers(0, len(envelope) - 1))
    envelope[place] ^= data.draw(st.integers(1, 255))
    try:
        assert not read_signature(bytes(envelope), measurement, manifest).valid
    except SignatureError:
        pass


# -- which signature counts ----------------------------------------------------------------------------------------------


def _signed(image, key, **changes):
    said = {"measurement": image.measurement, "product_id": 7, "security_version": 3, "debug": False, **changes}
    return image.with_signature(dsse.sign(PAYLOAD_TYPE, canonical_json(Payload(**said)), key))


def test_an_unsigned_image_is_refused(image):
    with pytest.raises(SignatureError, match="is not signed"):
        verified_signature(image, accept_debug=True)


def test_a_release_signature_comes_before_a_debug_one(image):
    key = SigningKey.generate()
    both = add_signature(add_signature(image, debug_key()), key)
    for accept_debug in (True, False):
        found = verified_signature(both, accept_debug=accept_debug)
        assert (found.signer, found.debug, found.product_id, found.security_version) == (key.signer, False, 7, 3)


def test_a_debug_signature_counts_only_where_it_is_accepted(image):
    signed = add_signature(image, debug_key())
    assert verified_signature(signed, accept_debug=True).debug
    with pytest.raises(SignatureError, match="for debugging only"):
        verified_signature(signed, accept_debug=False)


def test_the_debug_key_cannot_sign_a_release(image):
    signed = _signed(image, debug_key(), debug=False)
    assert [each.valid for each in signed.signatures] == [False]
    with pytest.raises(SignatureError, match="holds"):
        verified_signature(signed, accept_debug=True)


@pytest.mark.parametrize(
    "changes",
    [{"measurement": "sha256:" + "0" * 64}, {"product_id": 8}, {"security_version": 4}],
    ids=["of another image", "another product", "a higher version"],
)
def test_a_signature_over_something_else_does_not_hold(image, changes):
    signed = _signed(image, SigningKey.generate(), **changes)
    with pytest.raises(SignatureError, match="holds"):
        verified_signature(signed, accept_debug=True)


def test_an_invalid_signature_beside_a_valid_one_does_no_harm(image):
    key = SigningKey.generate()
    signed = add_signature(_signed(image, SigningKey.generate(), product_id=8), key)
    assert [each.valid for each in signed.signatures] == [False, True]
    assert verified_signature(signed, accept_debug=False).signer == key.signer


def test_an_envelope_about_something_else_is_no_signature(image):
    with pytest.raises(SignatureError, match="not of an image"):
        image.with_signature(dsse.sign("text/plain", b"hello", debug_key()))


def test_too_many_signatures_are_refused(image):
    envelopes = [make_signature(image.measurement, image.manifest, SigningKey.generate()) for _ in range(17)]
    blobs = {digest: blob.read() for digest, blob in image.blobs.items()}
    with pytest.raises(ImageError, match="at most 16"):
        Image.from_parts(image.oci_manifest, blobs, envelopes)


# -- the command ---------------------------------------------------------------------------------------------------------


def test_signing_never_changes_the_measurement(image_file):
    before = Image.open(image_file)
    SigningKey.generate().save("k")
    done = run(sign, image_file, "--key", "k")
    assert done.output == f"{image_file} {before.measurement}\n"
    run(sign, image_file, "--debug")
    after = Image.open(image_file)
    assert (after.measurement, after.oci_manifest) == (before.measurement, before.oci_manifest)
    assert sorted((each.debug, each.valid) for each in after.signatures) == [(False, True), (True, True)]


def test_signing_twice_with_one_key_leaves_one_signature(image_file):
    run(sign, image_file, "--debug")
    once = image_file.read_bytes()
    run(sign, image_file, "--debug")
    assert image_file.read_bytes() == once


def test_signing_to_another_file_leaves_the_first(image_file, workplace):
    before = image_file.read_bytes()
    run(sign, image_file, "--debug", "-o", workplace / "signed.enclave")
    assert image_file.read_bytes() == before
    assert len(Image.open(workplace / "signed.enclave").signatures) == 1


def test_sign_wants_exactly_one_key(image_file):
    with pytest.raises(UsageError, match="which key"):
        run(sign, image_file)
    SigningKey.generate().save("k")
    with pytest.raises(UsageError, match="two ways"):
        run(sign, image_file, "--debug", "--key", "k")


def test_the_key_may_come_from_the_environment(image_file, monkeypatch):
    SigningKey.generate().save("k")
    monkeypatch.setenv("ADYTON_KEY", "k")
    said = json.loads(run(sign, image_file, "--json").output)
    assert said["signer"] == SigningKey.load("k").signer
    assert run(sign, image_file, "--debug").exit_code == 0


def test_what_is_no_image_cannot_be_signed(workplace):
    (workplace / "x.enclave").write_bytes(b"hello")
    with pytest.raises(ImageError):
        run(sign, "x.enclave", "--debug")
    with pytest.raises(AdytonError, match="cannot be read"):
        run(sign, "none.enclave", "--debug")
    assert (workplace / "x.enclave").read_bytes() == b"hello"


def test_openssl_reads_our_keys(workplace):
    SigningKey.generate().save("k")
    try:
        done = subprocess.run(["openssl", "pkey", "-in", "k", "-pubout"], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        pytest.skip("there is no openssl command here")
    assert done.stdout == (workplace / "k.pub").read_text()


def test_a_file_that_cannot_be_written_leaves_the_image_as_it_was(image_file, workplace):
    before = image_file.read_bytes()
    with pytest.raises(UsageError, match="cannot be written"):
        sign_image(image_file, debug_key(), workplace / "none" / "x.enclave")
    assert image_file.read_bytes() == before
    assert sorted(os.listdir(workplace)) == ["pay.enclave"]
