"""Layers: packed the same way anywhere, and unpacked into their folder and nowhere else."""

import io
import os
import stat
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adyton.crypto.digest import digest_of
from adyton.errors import ImageError, UsageError
from adyton.image import archive
from adyton.image.layers import LayerFile, unpack_layer

NAME = st.text(st.sampled_from("abcdefghijklmnopqrstuvwxyz0123456789_.-é漢"), min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..")
)


def files():
    """Files by path, none of them where another has a folder."""
    paths = st.lists(st.lists(NAME, min_size=1, max_size=4).map("/".join), max_size=8, unique=True)

    def apart(found):
        return [each for each in found if not any(other.startswith(each + "/") for other in found)]

    return paths.map(apart).flatmap(
        lambda found: st.fixed_dictionaries({each: st.binary(max_size=1100) for each in found})
    )


def tar(*members, layout=tarfile.USTAR_FORMAT):
    """A tar of TarInfo or (name, content)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=layout) as packed:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                packed.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                packed.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def tree(folder):
    return {
        os.path.relpath(os.path.join(above, name), folder): Path(above, name).read_bytes()
        for above, _, names in os.walk(folder)
        for name in names
    }


# -- packing ---------------------------------------------------------------------------------------------------------------


@given(files())
def test_what_is_packed_is_what_any_tar_reads(content):
    data = archive.pack(content)
    with tarfile.open(fileobj=io.BytesIO(data)) as found:
        assert {each.name: found.extractfile(each).read() for each in found.getmembers()} == content
        for each in found.getmembers():
            assert (each.mode, each.uid, each.gid, each.mtime, each.uname, each.gname) == (0o644, 0, 0, 0, "", "")
    assert [(each.path, data[each.offset : each.offset + each.size]) for each in archive.unpack(data)] == sorted(
        content.items(), key=lambda item: item[0].encode()
    )


@given(files(), st.randoms())
def test_the_order_in_which_files_are_found_does_not_matter(content, random):
    shuffled = list(content.items())
    random.shuffle(shuffled)
    assert archive.pack(dict(shuffled)) == archive.pack(content)


def test_known_bytes_of_a_packed_file():
    assert archive.pack({})[:1024] == bytes(1024)
    packed = archive.pack({"a": b"x"})
    assert len(packed) == 2048
    assert packed[:1] == b"a"
    assert packed[257:265] == b"ustar\x0000"


def test_long_paths_have_a_place_up_to_the_format_s_limit():
    path = "/".join(["d" * 30] * 5 + ["n" * 90])
    assert [each.path for each in archive.unpack(archive.pack({path: b""}))] == [path]
    assert archive.unpack(archive.pack({"n" * 100: b""}))[0].path == "n" * 100
    for too_long in ("n" * 101, "/".join(["d" * 30] * 9)):
        with pytest.raises(UsageError, match="too long"):
            archive.pack({too_long: b""})


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "../x", "a/../x", "a//b", "./a", "a/", "a\0b", "a\nb", "\udcff", "a/" * 64 + "b"]
)
def test_paths_that_are_none_are_not_packed(path):
    with pytest.raises(UsageError):
        archive.pack({path: b""})


# -- unpacking -------------------------------------------------------------------------------------------------------------


@given(content=files())
def test_files_come_back_as_they_were(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("layer")
    unpack_layer(archive.pack(content), folder)
    assert tree(folder) == content


def test_modes_are_the_runtime_s_whatever_layer_and_umask_say(tmp_path):
    script, hidden, folder = tarfile.TarInfo("script"), tarfile.TarInfo("hidden"), special("folder", tarfile.DIRTYPE)
    script.mode, hidden.mode, folder.mode = 0o4711, 0o000, 0o700
    mask = os.umask(0o077)
    try:
        unpack_layer(tar(script, hidden, folder, ("sub/file", b""), ("sub/tool", b"")), tmp_path, ["sub/tool", "tool"])
    finally:
        os.umask(mask)
    modes = {
        name: stat.S_IMODE(os.stat(tmp_path / name).st_mode)
        for name in ("script", "hidden", "folder", "sub", "sub/file", "sub/tool")
    }
    assert modes == {
        **dict.fromkeys(("script", "hidden", "sub/file"), 0o644),
        **dict.fromkeys(("folder", "sub", "sub/tool"), 0o755),
    }


def test_a_folder_can_be_given_by_descriptor(tmp_path):
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        unpack_layer(archive.pack({"a/b": b"1"}), descriptor)
        os.fstat(descriptor)
    finally:
        os.close(descriptor)
    assert tree(tmp_path) == {"a/b": b"1"}


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "./evil", "a//evil", "..", "a/./b"])
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
    inside = tmp_path / "inside"
    inside.mkdir()
    with pytest.raises(ImageError, match="plain names"):
        unpack_layer(tar(("good", b"1"), (name, b"evil")), inside)
    assert tree(tmp_path) == {}


@pytest.mark.parametrize(
    "kind",
    [
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.FIFOTYPE,
        tarfile.CONTTYPE,
        b"S",
        b"V",
        b"x",
        b"L",
    ],
)
def test_only_files_and_folders_are_unpacked(tmp_path, kind):
    with pytest.raises(ImageError):
        unpack_layer(tar(("good", b"1"), special("bad", kind, "/etc/passwd")), tmp_path)
    assert tree(tmp_path) == {}


def test_links_that_lie_in_the_folder_are_not_followed(tmp_path):
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    (inside / "folder").symlink_to(outside)
    (inside / "file").symlink_to(outside / "file")
    for path in ("folder/evil", "file"):
        with pytest.raises(ImageError, match="something else is already"):
            unpack_layer(archive.pack({path: b"evil"}), inside)
    assert list(outside.iterdir()) == []


def test_nothing_is_overwritten(tmp_path):
    unpack_layer(archive.pack({"a": b"1", "d/x": b"2"}), tmp_path)
    for content in ({"a": b"evil"}, {"a/b": b"evil"}, {"d": b"evil"}):
        with pytest.raises(ImageError, match="something else is already"):
            unpack_layer(archive.pack(content), tmp_path)
    unpack_layer(archive.pack({"d/y": b"3"}), tmp_path)
    assert tree(tmp_path) == {"a": b"1", "d/x": b"2", "d/y": b"3"}


def test_a_name_may_be_there_once(tmp_path):
    with pytest.raises(ImageError, match="twice"):
        unpack_layer(tar(("a", b"1"), ("a", b"2")), tmp_path)


@pytest.mark.parametrize("layout", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_by_extension_headers_are_refused(tmp_path, layout):
    with pytest.raises(ImageError):
        unpack_layer(tar(("n" * 200, b""), layout=layout), tmp_path)


@given(content=files())
def test_a_layer_in_a_file_is_unpacked_as_one_in_memory(tmp_path_factory, content):
    home = tmp_path_factory.mktemp("layer")
    data = archive.pack(content)
    (home / "layer").write_bytes(data)
    for name, layer in (("one", data), ("two", LayerFile(digest_of(data), len(data), str(home / "layer")))):
        (home / name).mkdir()
        unpack_layer(layer, home / name)
    assert tree(home / "one") == tree(home / "two") == content


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data + b"x", lambda data: b"y" + data[1:]])
def test_a_layer_in_a_file_that_is_not_the_one_is_refused(tmp_path, damage):
    data = archive.pack({"a": b"x" * 5000})
    (tmp_path / "layer").write_bytes(damage(data))
    (tmp_path / "folder").mkdir()
    layer = LayerFile(digest_of(data), len(data), str(tmp_path / "layer"))
    with pytest.raises(ImageError, match="is damaged where it is stored"):
        unpack_layer(layer, tmp_path / "folder")
    (tmp_path / "layer").unlink()
    with pytest.raises(ImageError, match="cannot be read"):
        unpack_layer(layer, tmp_path / "folder")


def test_a_size_beyond_the_archive_is_refused_before_anything_is_made(tmp_path):
    data = bytearray(tar(("good", b"1"), ("big", b"")))
    header = data[1024:1536]
    header[124:136] = b"77777777777\0"
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    data[1024:1536] = header
    with pytest.raises(ImageError, match="cut off"):
        unpack_layer(bytes(data), tmp_path)
    assert tree(tmp_path) == {}


def test_more_members_than_are_bounded_are_refused(monkeypatch):
    monkeypatch.setattr(archive, "MAX_MEMBERS", 3)
    archive.unpack(archive.pack({str(index): b"" for index in range(3)}))
    with pytest.raises(ImageError, match="more than 3"):
        archive.unpack(archive.pack({str(index): b"" for index in range(4)}))


@given(st.binary(max_size=2000))
def test_nothing_but_image_errors_leaves_the_reader(data):
    try:
        archive.unpack(data)
    except ImageError:
        pass


@given(files().filter(bool), st.data())
def test_a_changed_header_is_refused_or_leads_nowhere_else(content, data):
    packed = bytearray(archive.pack(content))
    for _ in range(data.draw(st.integers(1, 3))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = archive.unpack(bytes(packed))
    except ImageError:
        return
    for each in found:
        archive.check_path(each.path)
        assert 0 <= each.offset <= each.offset + each.size <= len(packed)
