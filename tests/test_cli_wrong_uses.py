"""Each command with each wrong use that a newcomer could make: one table, asserted for people and, once more, for `--json`.

A text says what failed, why, and what to do next; standard output stays empty, and nothing is written anywhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
from pathlib import Path

import pytest

import adyton
from adyton.cli.root import COMMANDS, run
from adyton.errors import PlatformError, UsageError

PROGRAM = """
def double(number: int) -> int:
    return 2 * number

def greet(name: str, times: int = 1) -> str:
    return name * times

def total(*numbers: int) -> int:
    return sum(numbers)
"""
SANDBOX = pytest.mark.sandbox

# command line | why it is wrong | exit code | the text, or a part of it that says what to do
TABLE = """
''                                                  | an empty command            | 2  | No such command ''.
biuld                                               | a mistyped command          | 2  | No such command 'biuld'. Did you mean 'build'?
frobnicate                                          | no command                  | 2  | No such command 'frobnicate'.
--versoin                                           | a mistyped option           | 2  | No such option '--versoin'. Did you mean '--version'?
ps                                                  | a later command             | 2  | adyton ps is not in this version: a server says nothing of its enclaves
ps --on grpc://h --help                             | a later command's help      | 2  | adyton --help lists what there is
stop 7                                              | a later command             | 2  | adyton stop is not in this version: an enclave ends with its client
attest 7                                            | no server                   | 2  | --on is missing: which server runs the enclave?
attest --on grpc://h                                | no enclave                  | 2  | Missing argument 'ID'
verify e --policy p                                 | no such policy              | 2  | the policy p cannot be read: No such file or directory; name a TOML file
build --kye k                                       | a mistyped option           | 2  | No such option '--kye'. Did you mean '--key'?
build --key                                         | no value                    | 2  | Option '--key' requires an argument: --key FILE
build --key missing                                 | no such key                 | 2  | the signing key missing cannot be read: No such file or directory. Make one with `adyton keygen missing`
build --key prog.py                                 | no key                      | 2  | prog.py is not an unencrypted private key in PEM. Make one with `adyton keygen`
build --key folder                                  | a folder for a key          | 2  | the signing key folder cannot be read: Is a directory
build                                               | no project                  | 2  | or above: change to the project's folder, or write a table [tool.adyton.enclave.NAME]
run quick                                           | no project                  | 2  | no pyproject.toml with a [tool.adyton] table in
run                                                 | no target                   | 2  | Missing argument 'TARGET'. For example: adyton run quickstart -- --message "Asylo Rocks"
run quick --message x                               | no --                       | 2  | No such option '--message'. Arguments that begin with - stand after --.
inspect                                             | no image                    | 2  | Missing argument 'IMAGE'. For example: adyton inspect build/demo_enclave.enclave
inspect a b                                         | too many                    | 2  | Got unexpected extra argument (b)
inspect --jsno good.enclave                         | a mistyped option           | 2  | Did you mean '--json'?
inspect missing                                     | no such file                | 2  | the image missing cannot be read: No such file or directory. Build it with `adyton build`
inspect folder                                      | a folder                    | 2  | the image folder cannot be read: Is a directory
inspect loop                                        | a link to itself            | 2  | the image loop cannot be read: Too many levels of symbolic links
inspect picture.png                                 | a picture                   | 40 | picture.png is not an enclave image: it is no archive such as `adyton build` makes
inspect script.enclave                              | a program under its name    | 40 | script.enclave is not an enclave image: it is no archive such as `adyton build` makes
inspect empty.enclave                               | an empty file               | 40 | empty.enclave is not an enclave image: the file is empty
inspect cut.enclave                                 | a truncated image           | 40 | it was cut off
inspect empty.py                                    | an empty program            | 2  | empty.py has no entry: annotate the parameters of a public function, or make an Enclave
inspect syntax.py                                   | no Python                   | 2  | syntax.py, line 1: invalid syntax. Correct the source and build again
keygen                                              | no key                      | 2  | Missing argument 'KEY'. For example: adyton keygen release.key
keygen a b                                          | too many                    | 2  | Got unexpected extra argument (b)
keygen k                                            | a key that is there         | 2  | k is there already, and keys are never overwritten: name another file
keygen half                                         | its other half is there     | 2  | half.pub is there already, and keys are never overwritten: name another file
keygen folder                                       | a folder                    | 2  | folder is there already
keygen missing/k                                    | into a missing folder       | 2  | the key cannot be written to missing/k.pub: No such file or directory. Name a file in a folder of yours
sign                                                | no image                    | 2  | For example: adyton sign build/demo_enclave.enclave --key release.key
sign good.enclave                                   | no key                      | 2  | sign with which key? Give --key FILE (made by `adyton keygen`), or --debug
sign good.enclave --debug --key k                   | two keys                    | 2  | --debug and --key are two ways to sign: give one of them, or sign twice
sign good.enclave --key k.pub                       | the public half             | 2  | k.pub is not an unencrypted private key in PEM; it looks like a public key
sign good.enclave --key prog.py                     | no key                      | 2  | prog.py is not an unencrypted private key in PEM
sign good.enclave --debug -o                        | no value                    | 2  | Option '-o' requires an argument: -o FILE
sign good.enclave --debug -o missing/x              | into a missing folder       | 2  | the image cannot be written to missing/x: No such file or directory. Name a file in a folder of yours
sign good.enclave --debug -o folder                 | onto a folder               | 2  | the image cannot be written to folder: Is a directory
sign missing --debug                                | no such file                | 2  | the image missing cannot be read
sign prog.py --debug                                | a program                   | 40 | prog.py is not an enclave image: it is no archive such as `adyton build` makes
init a b                                            | too many                    | 2  | Got unexpected extra argument (b)
init prog.py                                        | a file                      | 2  | prog.py is a file: name a folder, or one that is to be made
init present                                        | files in the way            | 2  | policy.toml is in present already, and nothing is overwritten: name a new folder, such as adyton init demo
doctor x                                            | an argument                 | 2  | Got unexpected extra argument (x)
doctor --frob                                       | no option                   | 2  | No such option '--frob'
syscalls x                                          | an argument                 | 2  | Got unexpected extra argument (x)
syscalls --jsn                                      | a mistyped option           | 2  | Did you mean '--json'?
call                                                | no image                    | 2  | Missing argument 'IMAGE'. For example: adyton call pay.py mean_pay pay.csv --allow-read pay.csv
call prog.py                                        | no entry                    | 2  | call which entry of prog.py? Its entries are:
call missing.py f                                   | no such file                | 2  | there is no file missing.py: give a .enclave or .py file, or sha256:… of an image that the server has
call folder f                                       | a folder                    | 2  | the image folder cannot be read: Is a directory
call picture.png f                                  | a picture                   | 40 | picture.png is not an enclave image
call 'my prog.py' f                                 | a name with a space         | 2  | 'my prog' cannot be a program's name: call the file something with letters from a to z
call prög.py f                                      | a name with an umlaut       | 2  | 'prög' cannot be a program's name: call the file something with letters from a to z
call json.py f                                      | a name of Python's          | 2  | Python has a module json of its own: give the file another name
call good.enclave run                               | a program without entries   | 2  | It has none: a driver enters it with enter_and_run; `adyton run` runs one
call prog.py duoble 1                               | a mistyped entry            | 2  | prog.py has no entry 'duoble'. Did you mean 'double'? Its entries are:
call prog.py double                                 | too few                     | 2  | double(number: int) -> int takes 1 argument, and was given 0
call prog.py double 1 2                             | too many                    | 2  | double(number: int) -> int takes 1 argument, and was given 2
call prog.py greet                                  | too few of several          | 2  | takes 1 to 2 arguments, and was given 0
call prog.py double x                               | text for a number           | 2  | double(number: int) -> int: number takes int in JSON, and 'x' is no JSON
call prog.py double -5                              | no --                       | 2  | No such option '-5'. Arguments that begin with - stand after --.
call prog.py double 1.5                             | a fraction                  | 2  | double(number: int) -> int: argument 'number': Expected `int`, got `float`
call prog.py total 1 '"2"'                          | one of many                 | 2  | Expected `int`, got `str`
call prog.py double 1 --timeout                     | no value                    | 2  | Option '--timeout' requires an argument: --timeout S
call prog.py double 1 --timeout soon                | no number                   | 2  | 'soon' is no number of seconds above 0, such as 2.5.
call prog.py double 1 --timeout 0                   | too small                   | 2  | '0' is no number of seconds above 0
call prog.py double 1 --timeout nan                 | no number                   | 2  | 'nan' is no number of seconds above 0
call prog.py double 1 --timeout inf                 | no end                      | 2  | 'inf' is no number of seconds above 0
call prog.py double 1 --platform smi                | a mistyped platform         | 2  | Did you mean 'sim'?
call prog.py double 1 --platform snp                | a short platform            | 2  | Did you mean 'sev-snp'?
call prog.py double 1 --platform sgx                | a platform not here         | 31 | adyton doctor says what this machine has
call prog.py double 1 --config sgx-smi              | a mistyped configuration    | 2  | Did you mean 'sgx-sim'?
call prog.py double 1 --config sgx --platform sim   | a contradiction             | 2  | --config sgx means --platform sgx, not sim: give one of the two
call prog.py double 1 --on                          | no value                    | 2  | Option '--on' requires an argument: --on URL
call prog.py double 1 --on grpc://127.0.0.1:1       | no server there             | 10 | cannot reach 127.0.0.1:1: nothing listens there. Is the server running, and is it this port?
call prog.py double 1 --on unix:missing             | no socket there             | 10 | cannot reach unix:missing
call prog.py double 1 --on 127.0.0.1:99999          | no port                     | 2  | Port out of range 0-65535; write HOST:PORT
call prog.py double 1 --on http://h                 | another protocol            | 2  | http://h: a server is grpc://HOST[:PORT], grpcs://HOST[:PORT] or unix:PATH, not http://
call prog.py double 1 --policy missing              | no policy                   | 2  | the policy missing cannot be read: No such file or directory; name a TOML file
call prog.py double 1 --policy folder               | a folder                    | 2  | the policy folder cannot be read: Is a directory
call prog.py double 1 --policy prog.py              | no TOML                     | 2  | prog.py: not TOML: Expected '=' after a key
call prog.py double 1 --policy picture.png          | a picture                   | 2  | the policy picture.png is not UTF-8, which TOML is
call prog.py double 1 --policy unknown.toml         | a mistyped key              | 2  | unknown.toml: unknown key allow.raed; did you mean read?
call prog.py double 1 --policy unknown2.toml        | a mistyped table            | 2  | unknown2.toml: unknown key alow; did you mean allow?
call prog.py double 1 --policy platform.toml        | a mistyped platform         | 2  | 'smi' is unknown; did you mean 'sim'?
call prog.py double 1 --allow-raed x                | a mistyped option           | 2  | '--allow-read'
call prog.py double 1 --allow-read                  | no value                    | 2  | Option '--allow-read' requires an argument: --allow-read PATH
call prog.py double 1 --allow-read /usr/lib         | the enclave's own           | 2  | /usr/lib cannot be the client's: /usr is the enclave's own. Leave it out
call prog.py double 1 --allow-net h:99999           | no port                     | 2  | '99999' is no port (1 to 65535)
call prog.py double 1 --allow-env LD_PRELOAD        | what the loader obeys       | 2  | LD_PRELOAD is obeyed by the loader or the interpreter
call prog.py double 1 --trace missing/t             | a missing folder            | 2  | --trace missing/t: no file can be written there
call prog.py double 1 --stats folder                | a folder                    | 2  | --stats folder: no file can be written there: name one in a folder of yours
call prog.py double 1 --stats missing/s             | a missing folder            | 2  | --stats missing/s: no file can be written there
call prog.py double 1 --remote_proxy nothing        | no such program             | 10 | the proxy server cannot be started: nothing: No such file or directory. Check --remote_proxy
call prog.py double 1 --remote_proxy "'"             | half a quotation            | 2  | --remote_proxy
call prog.py double 1 --remote_proxy false          | a program that is none      | 10 | the proxy server (false) did not start: it ended with status 1
call prog.py double 1 --token-file missing --on h   | no token                    | 2  | cannot read the token file missing: No such file or directory
call prog.py double 1 --token-file empty.py --on h  | an empty token              | 2  | the token file empty.py is empty: write a secret of your choice into it
call prog.py double 1 --on unix:nobody             | nobody at a unix socket     | 10 | cannot reach unix:nobody: nothing listens there. Is a server running, and is this its path?
proxy --listen unix:loop/s                          | no way to its folder        | 2  | cannot listen at unix:loop/s: is its folder there, and may you write it?
proxy --listen unix:prog.py                         | a file is no socket         | 2  | cannot listen at unix:prog.py: there is something of that name, and it is no socket
call prog.py frob 1                                 | a later word                | 2  | Of a .py file, public functions whose parameters are annotated are entries. Its entries are:
call prog.py double 1 --ca prog.py                  | no server for a CA          | 2  | --ca is for a server, and none is named: give --on, or leave out --ca
call prog.py double 1 --ssl_key k --on ''           | no server for a key         | 2  | --ssl-key is for a server, and none is named: give --on, or leave out --ssl-key
call prog.py double 1 --ca prog.py --on grpcs://h   | no certificate              | 2  | the CA certificate prog.py holds no certificate in PEM
call sha256:0123 f                                  | a server's image, no server | 2  | a local enclave needs its file (or give --on)
serve x                                             | an argument                 | 2  | Got unexpected extra argument (x)
serve --port                                        | no value                    | 2  | Option '--port' requires an argument: --port PORT
serve --port x                                      | no number                   | 2  | 'x' is no port: it is a number from 0 to 65535.
serve --port 65536                                  | too large                   | 2  | '65536' is no port
serve --prot 1                                      | a mistyped option           | 2  | '--port'
serve --host 0.0.0.0                                | open to all                 | 2  | --insecure
serve --platform sgx                                | a platform not here         | 31 | platform sgx is not to be had here
serve --platform smi                                | a mistyped platform         | 2  | Did you mean 'sim'?
serve --proxy-ports 9-5                             | the wrong way round         | 2  | --proxy-ports 9-5: write LOW-HIGH, such as 5000-5099
serve --config f                                    | a later option              | 2  | --config is not in this version: all clients that are let in may do the same
serve --data sales=/srv/sales                       | a later option              | 2  | --data is not in this version: enclaves get no data of the server's
serve --data-for sha256:00                          | a later option              | 2  | --data-for is not in this version
serve --remote_proxy nothing                        | no such program             | 2  | --remote_proxy nothing: there is no program nothing
serve --remote_proxy "'"                            | half a quotation            | 2  | --remote_proxy
serve --temporary_directory prog.py                 | a file                      | 2  | images cannot be kept in prog.py: Not a directory; give another folder
serve --token-file missing                          | no token                    | 2  | cannot read the token file missing
proxy x                                             | an argument                 | 2  | Got unexpected extra argument (x)
proxy --listen                                      | no value                    | 2  | Option '--listen' requires an argument: --listen HOST:PORT|unix:PATH
proxy --listen 5                                    | no host                     | 2  | --listen 5: write HOST:PORT (port 0 takes a free one) or unix:PATH
proxy --listen 127.0.0.1:99999                      | no port                     | 2  | --listen 127.0.0.1:99999: write HOST:PORT
proxy --listen unix:                                | no path                     | 2  | needs a path, such as unix:/run/adyton.sock
proxy --listn x                                     | a mistyped option           | 2  | No such option '--listn'. (Did you mean one of: '--json', '--listen'?)
"""
SIMULATED = "adyton: simulated enclave: NOT CONFIDENTIAL\n"
NEEDS_SANDBOX = ("double 1.5", "total 1", "--remote_proxy false")


def rows() -> list[object]:
    found = []
    for line in TABLE.strip().splitlines():
        command, why, status, text = (part.strip() for part in line.split(" | ", 3))
        marks = [SANDBOX] if any(each in command for each in NEEDS_SANDBOX) else []
        found.append(pytest.param(command, int(status), text, id=f"{command[:40]}-{why}"[:60], marks=marks))
    return found


@pytest.fixture(scope="module")
def shelf(tmp_path_factory) -> Path:
    """A folder of what is taken for something else. Read only: each use of it is wrong."""
    folder = tmp_path_factory.mktemp("shelf")
    with contextlib.chdir(folder):  # only here: its json.py must not be what later tests' Pythons import
        _fill()
    return folder


def _fill() -> None:
    for name, content in {
        "prog.py": PROGRAM,
        "my prog.py": PROGRAM,
        "prög.py": PROGRAM,
        "json.py": PROGRAM,
        "script.enclave": PROGRAM * 9,
        "empty.py": "",
        "empty.enclave": "",
        "syntax.py": "def f(:\n",
        "half.pub": "",
        "unknown.toml": "[allow]\nraed = []\n",
        "unknown2.toml": "[alow]\nread = []\n",
        "platform.toml": '[expect]\nplatforms = ["smi"]\n',
    }.items():
        Path(name).write_text(content)
    Path("folder").mkdir()
    Path("present").mkdir()
    Path("present/policy.toml").touch()
    Path("loop").symlink_to("loop")
    Path("picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(600))
    for command in (["keygen", "k"], ["init", "made"]):
        with pytest.raises(SystemExit, match="0"):
            run(command)
    with contextlib.chdir("made"), pytest.raises(SystemExit, match="0"):
        run(["build"])
    image = Path("made/build/demo_enclave.enclave").read_bytes()
    Path("good.enclave").write_bytes(image)
    Path("cut.enclave").write_bytes(image[:5000])


def content(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in folder.rglob("*") if not path.is_dir()
    }


@pytest.fixture
def cli(shelf, capfd, monkeypatch):
    """`adyton ARGUMENTS` in that folder: exit code, standard output, standard error."""
    monkeypatch.chdir(shelf)
    capfd.readouterr()

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            run(list(arguments))
        out, err = capfd.readouterr()
        return ended.value.code, out, re.sub(r"(?m)^[IWE]\d{4} .*\n", "", err)  # gRPC's own lines come when they like

    return call


@pytest.mark.parametrize(("command", "status", "text"), rows())
def test_wrong_uses(cli, shelf, monkeypatch, command, status, text):
    monkeypatch.setenv(
        "PATH", os.defpath
    )  # a folder of it that may not be searched makes another error of a missing program
    before = content(shelf)
    got, out, err = cli(*shlex.split(command))
    assert (got, out) == (status, ""), err
    assert text in err
    assert "Traceback" not in err
    assert "Errno" not in err
    assert "NOT CONFIDENTIAL" not in err or any(each in command for each in NEEDS_SANDBOX)

    monkeypatch.setenv("ADYTON_JSON", "1")
    got, out, err = cli(*shlex.split(command))
    assert got == status
    error = json.loads(out)["error"]
    assert error.keys() == {"exit_code", "type", "message", "failures"}
    assert error["exit_code"] == status
    assert text in error["message"]
    assert "adyton: " not in err.replace(SIMULATED, "")
    assert content(shelf) == before


# -- by the environment ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "value", "status", "text"),
    [
        (
            "TIMEOUT",
            "soon",
            2,
            "'soon' is no number of seconds above 0, such as 2.5. It is the value of ADYTON_TIMEOUT.",
        ),
        ("PLATFORM", "smi", 2, "Did you mean 'sim'? It is the value of ADYTON_PLATFORM."),
        ("PLATFORM", "sgx", 31, "platform sgx is not to be had here"),
        ("ON", "http://h", 2, "not http://"),
        ("ON", "grpc://127.0.0.1:1", 10, "Is the server running, and is it this port?"),
        ("ALLOW_SIM", "perhaps", 2, "It is the value of ADYTON_ALLOW_SIM."),
        ("JSON", "perhaps", 2, "It is the value of ADYTON_JSON."),
        ("POLICY", "missing", 2, "the policy missing cannot be read"),
        ("ALLOW_READ", "/usr/lib", 2, "/usr is the enclave's own"),
        ("ALLOW_ENV", "PATH", 2, "PATH is obeyed by the loader"),
        ("STATS", "folder", 2, "no file can be written there"),
        ("REMOTE_PROXY", "nothing", 10, "Check --remote_proxy"),
    ],
)
def test_variables_with_wrong_values(cli, monkeypatch, variable, value, status, text):
    monkeypatch.setenv(f"ADYTON_{variable}", value)
    got, out, err = cli("call", "prog.py", "double", "1")
    assert (got, out) == (status, ""), err
    assert text in err


def test_an_option_is_not_blamed_on_the_environment(cli, monkeypatch):
    monkeypatch.setenv("ADYTON_TIMEOUT", "soon")
    assert "ADYTON_TIMEOUT" not in cli("call", "prog.py", "double", "1", "--timeout", "later")[2]


# Both ways to name a platform end before anything is started: with what was typed, not with what the environment says.
@pytest.mark.parametrize(
    ("variables", "typed", "status", "text"),
    [
        ({"CONFIG": "sgx"}, [], 31, "platform sgx is not"),
        ({"CONFIG": "sgx-sim"}, ["--platform", "tdx"], 31, "platform tdx is not"),
        ({"PLATFORM": "sim"}, ["--config", "sgx"], 31, "platform sgx is not"),
        ({"PLATFORM": "tdx"}, ["--config", "sgx"], 31, "platform sgx is not"),
        ({"PLATFORM": "tdx", "CONFIG": "sgx"}, [], 2, "--config sgx means --platform sgx, not tdx"),
    ],
    ids=["variable alone", "typed platform", "typed configuration", "both sgx and tdx", "two variables"],
)
def test_a_typed_platform_beats_a_variable_that_means_the_same(cli, monkeypatch, variables, typed, status, text):
    for name, value in variables.items():
        monkeypatch.setenv(f"ADYTON_{name}", value)
    got, out, err = cli("call", "prog.py", "double", "1", *typed)
    assert (got, out) == (status, ""), err
    assert text in err


@pytest.mark.parametrize(
    ("variables", "kind", "text"),
    [
        ({"CONFIG": "sgx"}, PlatformError, "platform sgx is not"),
        ({"CONFIG": "sgx", "PLATFORM": "auto"}, PlatformError, "platform sgx is not"),
        ({"CONFIG": "sgx", "PLATFORM": "sim"}, UsageError, "ADYTON_CONFIG=sgx means"),
        ({"CONFIG": "smi"}, UsageError, "ADYTON_CONFIG=smi: it is sgx or sgx-sim"),
    ],
    ids=["configuration", "auto", "contradiction", "mistyped"],
)
def test_a_python_program_obeys_the_configuration_of_the_environment(cli, monkeypatch, variables, kind, text):
    for name, value in variables.items():
        monkeypatch.setenv(f"ADYTON_{name}", value)
    with pytest.raises(kind, match=re.escape(text)):
        adyton.load("prog.py")


# -- help --------------------------------------------------------------------------------------------------------------


def test_no_command_shows_the_help(cli):
    status, out, err = cli()
    assert (status, out) == (2, "")
    assert err.startswith("adyton call pay.py mean_pay pay.csv --allow-read pay.csv\n\nUsage: adyton ")
    assert all(f"  {name} " in err for name in COMMANDS)


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_begins_with_an_example_that_is_right(cli, name):
    from adyton.cli.root import root

    status, out, _ = cli(*filter(None, [name]), "--help")
    assert status == 0
    example, blank, usage, *_ = out.splitlines()
    assert (blank, usage.split()[:2]) == ("", ["Usage:", "adyton"])
    words = shlex.split(example)
    assert words[0] == "adyton"
    assert name in ("", words[1])
    command = root.get_command(None, words[1])
    command.make_context(words[1], words[2:], token_normalize_func=lambda token: token.replace("_", "-"))
    assert out.splitlines().count(example) == 1
    assert cli(*filter(None, [name]), "-h")[:2] == (0, out)
