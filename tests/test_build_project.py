"""adyton build: what pyproject.toml declares becomes images, the same bytes anywhere, or an error that says what to correct."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from adyton.cli.build import command as build
from adyton.cli.inspect import command as inspect
from adyton.crypto.keys import SigningKey, debug_key
from adyton.errors import PlatformError, SignatureError, UsageError
from adyton.image import archive
from adyton.image.manifest import RUNTIME_PACKAGES
from adyton.image.oci import Image
from adyton.image.project import build_loader, build_project
from adyton.image.pyproject import find_project, load_project
from adyton.image.sign import verified_signature

EXAMPLES = Path(__file__).parents[1] / "examples"
DEMO = """
from adyton import trusted
demo = trusted.Enclave("demo")

@demo.entry
def double(x: int) -> int:
    return x * 2
"""
TABLE = '[tool.adyton.enclave.demo]\nentry = "demo:demo"\n'


def project(folder, table=TABLE, **files):
    (folder / "pyproject.toml").write_text(textwrap.dedent(table))
    (folder / "demo.py").write_text(DEMO)
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


def run(command, *arguments):
    return CliRunner().invoke(command, [str(each) for each in arguments], catch_exceptions=False)


def content(path):
    data = Image.open(path).layers()[0]
    return {each.path: data[each.offset : each.offset + each.size] for each in archive.unpack(data)}


def refused(folder, table, match, error=UsageError, **files):
    project(folder, table, **files)
    with pytest.raises(error, match=match):
        build_project(folder)
    assert not (folder / "build").exists()


# -- what is built -----------------------------------------------------------------------------------------------------------


def test_build_writes_the_image_and_prints_path_and_measurement(workplace):
    project(workplace)
    done = run(build)
    image = Image.open("build/demo.enclave")
    assert done.output == f"build/demo.enclave {image.measurement}\n"
    assert image.manifest.entry == "demo:demo"
    assert [str(each) for each in image.manifest.entries] == ["double(x: int) -> int"]
    assert content("build/demo.enclave") == {"demo.py": DEMO.encode()}
    assert verified_signature(image, accept_debug=True).signer == debug_key().signer


def test_whom_sealed_files_belong_to_is_in_the_image_only_if_it_is_said(workplace):
    plain = build_project(project(workplace))[0]
    SigningKey.generate().save("k")
    said = build_project(project(workplace, TABLE + 'seal = "signer"\nseal_memory = "required"\nsign = "k"\n'))[0]
    manifest = Image.open(said.path).manifest
    assert (manifest.seals_to, manifest.demands_memory) == ("signer", True)
    assert json.loads(run(inspect, said.path, "--json").output)["seal"] == "signer"
    manifest = Image.open(build_project(project(workplace))[0].path).manifest
    assert (manifest.seals_to, manifest.demands_memory) == ("measurement", False)
    assert "seal" not in json.loads(run(inspect, said.path, "--json").output)
    assert (
        plain.measurement
        == build_project(project(workplace, TABLE + 'seal = "measurement"\nseal_memory = "kept"\n'))[0].measurement
    )


def test_an_image_signed_for_debugging_has_no_sealed_files_of_its_signer(workplace):
    refused(workplace, TABLE + 'seal = "signer"\n', "the debug key, which everybody has, would sign it")
    refused(workplace, TABLE + 'seal = "everybody"\n', "seal")


def test_build_works_from_a_folder_below(workplace, monkeypatch):
    project(workplace)
    (workplace / "sub").mkdir()
    monkeypatch.chdir(workplace / "sub")
    assert run(build).output.startswith(f"{workplace}/build/demo.enclave sha256:")


def test_build_as_json(workplace):
    project(workplace)
    said = json.loads(run(build, "--json").output)
    assert said == [
        {"path": f"{workplace}/build/demo.enclave", "measurement": Image.open("build/demo.enclave").measurement}
    ]


def test_the_same_source_builds_to_the_same_bytes_anywhere(tmp_path, monkeypatch):
    one, two = tmp_path / "one", tmp_path / "deeper" / "two"
    shutil.copytree(EXAMPLES / "quickstart", one, ignore=shutil.ignore_patterns("build", "__pycache__"))
    two.parent.mkdir()
    two.mkdir()
    mask = os.umask(0o077)
    try:
        for name in sorted(os.listdir(one), reverse=True):
            (two / name).write_bytes((one / name).read_bytes())
            os.utime(two / name, (1, 1))
            os.chmod(two / name, 0o700)
        monkeypatch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        (first,), (second,) = build_project(one), build_project(two)
    finally:
        os.umask(mask)
        monkeypatch.undo()
        time.tzset()
    assert Path(first.path).read_bytes() == Path(second.path).read_bytes()
    assert first.measurement == second.measurement


def test_another_interpreter_with_another_hash_seed_builds_the_same_bytes(workplace):
    project(workplace)
    measurements = set()
    for seed in ("1", "2"):
        command = [sys.executable, "-c", "from adyton.image.project import *; print(build_project('.')[0].measurement)"]
        done = subprocess.run(
            command, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        )
        measurements.add(done.stdout)
    assert len(measurements) == 1


@pytest.mark.parametrize(
    ("table", "file", "text"),
    [
        (TABLE, "demo.py", DEMO + "\n"),
        (TABLE + "product_id = 1\n", "demo.py", DEMO),
        (TABLE + "security_version = 1\n", "demo.py", DEMO),
        (TABLE + 'python = "3.12"\n', "demo.py", DEMO),
        (TABLE + 'limits = { memory = "48MiB" }\n', "demo.py", DEMO),
        (TABLE + 'host_calls = ["file"]\n', "demo.py", DEMO),
        (TABLE.replace("enclave.demo", "enclave.other"), "demo.py", DEMO),
    ],
)
def test_what_matters_changes_the_measurement(workplace, table, file, text):
    project(workplace)
    before = build_project(workplace)[0].measurement
    project(workplace, table)
    (workplace / file).write_text(text)
    assert build_project(workplace)[0].measurement != before


def test_signing_does_not_change_the_measurement(workplace):
    SigningKey.generate().save("release")
    measurements = set()
    for sign, signers in (
        ("none", []),
        ("debug", [debug_key().signer]),
        ("release", [SigningKey.load("release").signer]),
    ):
        project(workplace, TABLE + f'sign = "{sign}"\n')
        built = build_project(workplace)[0]
        measurements.add(built.measurement)
        assert [each.signer for each in Image.open(built.path).signatures] == signers
    assert len(measurements) == 1


def test_a_key_on_the_command_line_wins(workplace):
    SigningKey.generate().save("k")
    project(workplace, TABLE + 'sign = "none"\n')
    run(build, "--key", "k")
    assert (
        verified_signature(Image.open("build/demo.enclave"), accept_debug=False).signer == SigningKey.load("k").signer
    )


def test_an_unsigned_image_is_built_but_does_not_pass(workplace):
    project(workplace, TABLE + 'sign = "none"\n')
    with pytest.raises(SignatureError):
        verified_signature(Image.open(build_project(workplace)[0].path), accept_debug=True)


def test_the_manifest_says_what_the_table_says(workplace):
    table = (
        TABLE
        + 'python = ">= 3.11, <3.14"\nproduct_id = 9\nsecurity_version = 4\nhost_calls = ["net", "file"]\n'
        + 'limits = { memory = "512MiB", threads = 64, files = 256 }\n'
    )
    manifest = Image.open(build_project(project(workplace, table))[0].path).manifest
    assert (manifest.name, manifest.runtime, manifest.python, manifest.platforms) == (
        "demo",
        "process",
        ">=3.11,<3.14",
        ["any"],
    )
    assert (manifest.product_id, manifest.security_version, manifest.host_calls) == (9, 4, ["file", "net"])
    assert (manifest.limits.memory, manifest.limits.threads, manifest.limits.files) == (512 << 20, 64, 256)
    assert manifest.runs_on_python((3, 13))
    assert not manifest.runs_on_python((3, 14))


def test_targets_name_enclaves_and_loaders(workplace):
    table = """
        [tool.adyton.enclave.demo]
        entry = "demo:demo"
        [tool.adyton.enclave.second]
        entry = "demo:demo"
        [tool.adyton.loader.start]
        driver = "driver.py"
        enclaves = { two = "second" }
    """
    project(workplace, table)
    assert [each.name for each in build_project(workplace)] == ["demo", "second"]
    assert [each.name for each in build_project(workplace, ["start"])] == ["second"]
    assert [each.name for each in build_project(workplace, ["second", "demo", "start"])] == ["second", "demo"]
    with pytest.raises(UsageError, match=r"'secnd' \(nearest: second\)"):
        build_project(workplace, ["secnd"])


def test_a_loader_is_built_with_its_arguments_filled_in(workplace):
    table = TABLE + textwrap.dedent("""
        [tool.adyton.loader.start]
        driver = "driver.py"
        enclaves = { enclave = "demo", again = "demo" }
        loader_args = ["--enclave_path={enclave}", "{again}{enclave}", "{other}", "{}"]
        remote_proxy = "adyton proxy"
    """)
    project(workplace, table)
    with pytest.raises(UsageError, match="driver"):
        build_loader(workplace, "start")
    (workplace / "driver.py").write_text("")
    loader = build_loader(workplace, "start")
    image = f"{workplace}/build/demo.enclave"
    assert loader.arguments == [f"--enclave_path={image}", image + image, "{other}", "{}"]
    assert (loader.driver, loader.build_directory) == (f"{workplace}/driver.py", f"{workplace}/build")
    assert loader.remote_proxy == "adyton proxy"
    assert Image.open(image)
    with pytest.raises(UsageError, match=r"no loader 'strat' \(nearest: start\)"):
        build_loader(workplace, "strat")


# -- sources -----------------------------------------------------------------------------------------------------------------


def test_files_packages_and_globs_are_taken(workplace):
    table = TABLE + 'sources = ["demo.py", "pkg", "data/*.txt"]\n'
    project(
        workplace,
        table,
        pkg____init___dot_py="",
        pkg__deep__m_dot_py="x = 1",
        pkg__table_dot_bin="b",
        data__a_dot_txt="a",
        data__b_dot_csv="b",
    )
    (workplace / "pkg" / "__init__.py").write_text("")
    for name in ("pkg/.hidden", "pkg/__pycache__/m.pyc", "pkg/m.pyc"):
        (workplace / name).parent.mkdir(exist_ok=True)
        (workplace / name).write_text("no")
    found = content(build_project(workplace)[0].path)
    assert {"demo.py", "pkg/__init__.py", "pkg/deep/m.py", "pkg/table.bin", "data/a.txt"} <= set(found)
    assert not {"data/b.csv", "pkg/.hidden", "pkg/__pycache__/m.pyc", "pkg/m.pyc"} & set(found)


def test_by_default_the_entry_s_package_is_taken(workplace):
    table = '[tool.adyton.enclave.demo]\nentry = "app.core:demo"\n'
    project(workplace, table, app__core_dot_py=DEMO, app__more_dot_py="x = 1", other_dot_py="y = 1")
    assert sorted(content(build_project(workplace)[0].path)) == ["app/core.py", "app/more.py"]


def test_what_lies_in_src_is_imported_without_it(workplace):
    table = '[tool.adyton.enclave.demo]\nentry = "app.core:demo"\n'
    project(workplace, table, src__app__core_dot_py=DEMO)
    assert sorted(content(build_project(workplace)[0].path)) == ["app/core.py"]
    (workplace / "app").mkdir()
    (workplace / "app" / "core.py").write_text(DEMO)
    project(workplace, table + 'sources = ["app", "src/app"]\n')
    with pytest.raises(UsageError, match="would both be"):
        build_project(workplace)


def test_a_second_build_does_not_take_in_the_first(workplace):
    project(workplace, TABLE + 'sources = ["**/*"]\n')
    first = build_project(workplace)[0].measurement
    assert build_project(workplace)[0].measurement == first


@pytest.mark.parametrize(
    ("sources", "match"),
    [
        ('["none.py"]', "matches no file"),
        ('["*.nothing"]', "matches no file"),
        ('["../demo.py"]', "inside of the project"),
        ('["/etc/passwd"]', "inside of the project"),
        ('[""]', "inside of the project"),
        ('["link.py", "demo.py"]', "outside of the project"),
        ('["linked", "demo.py"]', "outside of the project|symlink"),
        ('["holder", "demo.py"]', "symlink to a folder"),
        ('["data.txt"]', "not among the sources"),
        ('["demo.py", "adyton"]', "the runtime's own adyton"),
    ],
)
def test_sources_that_cannot_be_taken_are_named(workplace, tmp_path, sources, match):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.py").write_text("")
    (workplace / "link.py").symlink_to("/etc/passwd")
    (workplace / "linked").symlink_to(tmp_path / "outside")
    (workplace / "holder").mkdir()
    (workplace / "holder" / "inner").symlink_to(tmp_path / "outside")
    refused(workplace, TABLE + f"sources = {sources}\n", match, data_dot_txt="", adyton__x_dot_py="")


def test_no_module_for_the_entry_is_said(workplace):
    refused(workplace, TABLE.replace('"demo:demo"', '"nothing:demo"'), "neither nothing.py nor a package")


# -- .proto files ------------------------------------------------------------------------------------------------------------

PROTO = """
syntax = "proto2";
package t{n};
import "adyton/enclave.proto";
message M{n} {{ optional string text = 1; repeated M{n} more = 2; enum E {{ A = 0; B = 1; }} optional E e = 3; }}
extend adyton.EnclaveInput {{ optional M{n} m{n} = {number}; }}
"""


def test_proto_files_become_modules_in_the_image_and_in_build(workplace):
    table = TABLE + 'sources = ["demo.py", "messages.proto", "sub/other-one.proto"]\n'
    project(workplace, table)
    (workplace / "messages.proto").write_text(PROTO.format(n="a", number=2001) + 'import "sub/other-one.proto";')
    (workplace / "sub").mkdir()
    (workplace / "sub" / "other-one.proto").write_text(PROTO.format(n="b", number=2002))
    built = build_project(workplace)[0]
    found = content(built.path)
    assert sorted(found) == ["demo.py", "messages_pb2.py", "sub/other_one_pb2.py"]
    for name in ("messages_pb2.py", "sub/other_one_pb2.py"):
        assert (workplace / "build" / name).read_bytes() == found[name]
    program = """
        from adyton import EnclaveInput
        import messages_pb2, sub.other_one_pb2 as other
        given = EnclaveInput()
        given.Extensions[messages_pb2.ma].text = "hello"
        given.Extensions[other.mb].e = other.Mb.B
        given.Extensions[messages_pb2.ma].more.add().text = "again"
        back = EnclaveInput.FromString(given.SerializeToString())
        print(back.Extensions[messages_pb2.ma].more[0].text, back.Extensions[other.mb].e, type(other.Mb()).__module__)
    """
    for implementation in ("upb", "python"):
        environment = {
            **os.environ,
            "PYTHONPATH": str(workplace / "build"),
            "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": implementation,
        }
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout == "again 1 sub.other_one_pb2\n", (implementation, done.stderr)


def test_comments_in_proto_files_do_not_change_the_measurement(workplace):
    table = TABLE + 'sources = ["demo.py", "messages.proto"]\n'
    project(workplace, table, messages_dot_proto=PROTO.format(n="a", number=2001))
    before = build_project(workplace)[0].measurement
    project(workplace, table, messages_dot_proto="// hello\n" + PROTO.format(n="a", number=2001))
    assert build_project(workplace)[0].measurement == before


@pytest.mark.parametrize(
    ("proto", "match"),
    [
        ("message {", "messages.proto:1"),
        ('syntax = "proto2"; import "missing.proto";', "missing.proto"),
        (
            'syntax = "proto2"; import "beside.proto"; message A { optional B b = 1; }',
            "add that to `sources`|beside.proto",
        ),
    ],
)
def test_proto_files_that_cannot_be_compiled_are_named(workplace, proto, match):
    table = TABLE + 'sources = ["demo.py", "messages.proto"]\n'
    refused(workplace, table, match, messages_dot_proto=proto, beside_dot_proto='syntax = "proto2"; message B {}')


def test_a_module_made_of_a_proto_file_and_one_that_is_there_conflict(workplace):
    table = TABLE + 'sources = ["demo.py", "messages.proto", "messages_pb2.py"]\n'
    refused(
        workplace, table, "messages_pb2.py is among", messages_dot_proto='syntax = "proto3";', messages_pb2_dot_py=""
    )


# -- what is refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "match"),
    [
        ('[tool.adyton.enclave.demo]\nentyr = "demo:demo"\n', r"'entyr'.*nearest: entry"),
        (TABLE + "source = []\n", r"'source'.*nearest: sources"),
        (TABLE + "Limits = {}\n", r"'Limits'.*nearest: limits"),
        (TABLE + 'limits = { memry = "1MiB" }\n', r"limits.*'memry'.*nearest: memory"),
        ("[tool.adyton.enclaves.demo]\n", r"'enclaves'.*nearest: enclave"),
        (TABLE + '[tool.adyton.loader.x]\ndrivr = "x.py"\n', r"loader\.x.*'drivr'.*nearest: driver"),
        (TABLE + '[tool.adyton.loader.x]\ndriver = "x.py"\nenclaves = { a = "dmo" }\n', r"'dmo'.*nearest: demo"),
        (TABLE + "[tool.adyton.loader.x]\nloader_args = []\n", r"loader\.x.*driver"),
        ("[tool.adyton.enclave.demo]\n", "entry"),
        ("[tool.adyton.enclave]\n", "declares no enclave"),
        ("[tool.adyton]\nenclave = 1\n", "must be a table"),
        ("[tool]\nadyton = 1\n", "must be a table"),
        ('[tool.adyton.enclave."../x"]\nentry = "demo:demo"\n', "cannot be an image's name"),
        (TABLE + 'product_id = "1"\n', "product_id"),
        (TABLE + "product_id = 65536\n", "between 0 and 65535"),
        (TABLE + "security_version = -1\n", "between 0 and 65535"),
        (TABLE + 'runtime = "jvm"\n', "no runtime 'jvm'"),
        (TABLE + 'python = "3.9"\n', "3.11 or newer"),
        (TABLE + 'host_calls = ["flie"]\n', r"'flie' \(nearest: file\)"),
        (TABLE + 'limits = { memory = "lots" }\n', "not a size"),
        (TABLE + 'limits = { memory = "5 potatoes" }\n', "not a size"),
        (TABLE + "limits = { memory = 0 }\n", "limits"),
        (TABLE + 'limits = { memory = "47MiB" }\n', r"memory = '47MiB': .* give it 48MiB or more"),
        (TABLE + "limits = { threads = 0 }\n", "limits"),
        (TABLE + 'sign = "missing.key"\n', "missing.key cannot be read"),
        (TABLE.replace("demo:demo", "demo"), "form module:name"),
        (TABLE.replace("demo:demo", "demo:"), "form module:name"),
        (TABLE.replace("demo:demo", "demo:double"), "neither an Enclave"),
        (TABLE + "= 1\n", "not valid TOML"),
    ],
)
def test_what_pyproject_toml_says_wrong_is_named(workplace, table, match):
    refused(workplace, table, match)


def test_wasm_is_reserved(workplace):
    refused(workplace, TABLE + 'runtime = "wasm"\n', "reserved", error=PlatformError)
    assert PlatformError.exit_code == 31


@pytest.mark.parametrize(
    "dependency",
    [
        "cryptography",
        "cryptography>=40",
        f"msgspec=={RUNTIME_PACKAGES['msgspec']}",
        "Protobuf (>=5)",
        "adyton",
        "cffi ; python_version > '3'",
    ],
)
def test_dependencies_that_the_runtime_has_are_accepted(workplace, dependency):
    assert build_project(project(workplace, TABLE + f'dependencies = ["{dependency}"]\n'))


@pytest.mark.parametrize(
    ("dependency", "match"),
    [
        ("cryptography<40", "conflicts with the runtime, which has cryptography"),
        ("msgspec==0.1", "conflicts"),
        ("cffi @ https://example.com/cffi.whl", "the runtime's own"),
        ("cffi>=1.0rc1", "not a comparison"),
        ("-r requirements.txt", "not a requirement"),
        ("", "not a requirement"),
        ("two words", "not a (requirement|comparison)"),
    ],
)
def test_other_dependencies_are_refused(workplace, dependency, match):
    refused(workplace, TABLE + f'dependencies = ["{dependency}"]\n', match)


def test_a_folder_without_a_project_is_said(workplace):
    with pytest.raises(UsageError, match=r"no pyproject\.toml with a \[tool\.adyton\]"):
        find_project(workplace)
    with pytest.raises(UsageError, match="is not there"):
        load_project(workplace)
    (workplace / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    with pytest.raises(UsageError, match="has no"):
        load_project(workplace)


# -- inspect -----------------------------------------------------------------------------------------------------------------


def test_inspect_shows_what_the_interface_promises(workplace):
    project(workplace, TABLE + "limits = { threads = 2 }\n")
    run(build)
    said = json.loads(run(inspect, "build/demo.enclave", "--json").output)
    image = Image.open("build/demo.enclave")
    layer = image.layer_descriptors[0]
    assert said == {
        "name": "demo",
        "entry": "demo:demo",
        "entries": [
            {"name": "double", "parameters": [{"name": "x", "type": "int"}], "returns": "int", "stream": False}
        ],
        "runtime": "process",
        "python": ">=3.11",
        "platforms": ["any"],
        "measurement": image.measurement,
        "signatures": [{"signer": debug_key().signer, "debug": True, "valid": True}],
        "product_id": 0,
        "security_version": 0,
        "host_calls": ["call", "file", "net"],
        "limits": {"threads": 2},
        "programs": ["python"],
        "time": "client",
        "layers": [{"media_type": layer.media_type, "digest": layer.digest, "size": layer.size}],
        "size": os.path.getsize("build/demo.enclave"),
    }


def test_inspect_for_people_names_entries_and_signers(workplace):
    project(workplace)
    run(build)
    text = run(inspect, "build/demo.enclave").output
    assert "double(x: int) -> int" in text
    assert debug_key().signer in text
    assert Image.open("build/demo.enclave").measurement in text
