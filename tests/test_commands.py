"""What the commands share, on a command of three flags, and --preset_flags on the training."""

import json
import os
import re
import subprocess
import sys

import pytest
from kit import ENVIRONMENT, ROOT
from PIL import Image

from drcn_keras import errors

COMMAND = """
import json, os, sys
from absl import flags
from drcn_keras import commands, errors
from drcn_keras.commands import FLAGS

def define_flags():
    commands.define_folders("data_dir", "folders")
    flags.DEFINE_integer("tile", None, "pixels")
    flags.DEFINE_float("timeout", 1.0, "seconds", lower_bound=0.0)
    commands.require("data_dir")

def main(argv):
    commands.refuse_arguments(argv)
    assert os.environ["TF_ENABLE_ONEDNN_OPTS"] == "1"
    kind, text = json.loads(sys.stdin.read())
    if kind == "fine":
        print(FLAGS.data_dir)
    elif kind == "memory":
        raise MemoryError(text)
    elif kind == "system":
        open(text)
    else:
        raise getattr(errors, kind)(text)

commands.run(main, define_flags)
"""


def command(given, *arguments):
    environment = {key: value for key, value in os.environ.items() if key != "TF_ENABLE_ONEDNN_OPTS"}
    return subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        env={**environment, "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.parametrize(
    ("given", "arguments", "code", "line"),
    [
        (("ArgumentError", "`tile` is 3."), (), 1, "--tile is 3."),
        (("UserError", "`tile=3` is odd, `scale` and `a b` are no flags\nhere"), (), 1,
         "--tile=3 is odd, `scale` and `a b` are no flags here"),
        (("system", "/no/such"), (), 1, "/no/such: No such file or directory"),
        (("fine", ""), ("more",), 1, "unexpected argument 'more'; every setting is a --flag (--help lists them)."),
        (("memory", "Unable to allocate 5 TiB"), (), 1, "not enough memory. Unable to allocate 5 TiB"),
        (("fine", ""), ("--timeout=nan",), 2, "flag --timeout=nan: expected a finite number (--help lists every flag)"),
        (("fine", ""), ("--timeout=inf",), 2, "flag --timeout=inf: expected a finite number (--help lists every flag)"),
        (("fine", ""), ("--data_dir=",), 2, "--data_dir is required (--help lists every flag)"),
        (("fine", ""), ("--tile=x",), 2,
         "flag --tile=x: invalid literal for int() with base 10: 'x' (--help lists every flag)"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(given, arguments, code, line):
    done = command(given, *([] if "--data_dir=" in arguments else ["--data_dir=a,b"]), *arguments)
    assert (done.returncode, done.stderr, done.stdout) == (code, f"-c: error: {line}\n", "")


def test_several_required_flags_are_one_line():
    done = subprocess.run(
        [sys.executable, "tools/make_preset.py", "--run=x"], capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT
    )
    assert done.returncode == 2
    missing = "--name, --command, --data_dir, --self_ensemble_dir are required"
    assert done.stderr == f"make_preset.py: error: {missing} (--help lists every flag)\n"


def test_what_is_right_ends_well():
    done = command(("fine", ""), "--data_dir=a,b")
    assert (done.returncode, done.stdout) == (0, "['a', 'b']\n")
    stopped = command(("Stopped", "stopped; goes on"), "--data_dir=a")
    assert (stopped.returncode, stopped.stderr) == (0, "stopped; goes on\n")


def test_closed_streams_are_no_error():
    words = [sys.executable, "-c", COMMAND, "--data_dir=a"]
    done = subprocess.run(["sh", "-c", '"$@" >&- 2>&-', "sh", *words], input='["fine", ""]', text=True, env=ENVIRONMENT)
    assert done.returncode == 0


def test_an_argument_that_is_wrong_is_a_value_error_in_python():
    assert issubclass(errors.ArgumentError, ValueError)
    told = r"^drcn_none is not installed: pip install 'drcn_keras\[report\]'\.$"
    with pytest.raises(errors.UserError, match=told), errors.extra("report"):
        import drcn_none  # noqa: F401


def training(*arguments):
    code = (
        "import json\nfrom drcn_keras import commands, train\nfrom drcn_keras.commands import FLAGS\n"
        "commands.run(lambda argv: print(json.dumps([FLAGS.filters, FLAGS.recursions, argv[1:]])), train.define_flags)"
    )
    arguments = [sys.executable, "-c", code, *arguments]
    return subprocess.run(arguments, capture_output=True, text=True, env=ENVIRONMENT)


@pytest.mark.parametrize("given", [["--preset_flags=paper_x3"], ["--preset_flags", "paper_x3"]])
def test_flagfiles_of_the_package_are_found_by_name(given, tmp_path):
    # Later flags replace those of the file, earlier ones do not.
    done = training("--filters=8", *given, "--recursions=2")
    assert json.loads(done.stdout) == [256, 2, []], done.stderr

    wrong = training("--preset_flags=paper_x5")
    assert wrong.returncode == 2
    assert "--preset_flags must be one of drcn_x234, mobile_taught, mobile_thin, " in wrong.stderr
    assert "received 'paper_x5'" in wrong.stderr

    # absl reads flagfiles after the names were looked up: not to be passed over in silence.
    (tmp_path / "own.cfg").write_text("--preset_flags=paper_x3\n")
    inside = training(f"--flagfile={tmp_path / 'own.cfg'}")
    assert inside.returncode == 2
    assert "--preset_flags does not go into a flagfile" in inside.stderr


@pytest.mark.parametrize(
    ("encoding", "name", "printed"),
    [("cp1252", "写真", rb"\u5199\u771f"), ("utf-8", "caf\udce9", rb"caf\udce9"), ("utf-8", "写真", "写真".encode())],
)
def test_a_name_that_the_output_cannot_encode_is_printed_all_the_same(encoding, name, printed):
    code = COMMAND.replace("FLAGS.data_dir", json.dumps(name))
    done = subprocess.run(
        [sys.executable, "-c", code, "--data_dir=x"],
        input=b'["fine", ""]',
        capture_output=True,
        env={**ENVIRONMENT, "PYTHONIOENCODING": encoding},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == printed + b"\n"


def test_folders_are_repeated_or_separated_and_a_comma_may_be_their_own(tmp_path):
    (tmp_path / "a,b").mkdir()
    done = command(("fine", ""), f"--data_dir={tmp_path}/a,b", "--data_dir=c,d")
    assert done.stdout == f"{[f'{tmp_path}/a,b', 'c', 'd']}\n"


def test_every_list_of_folders_is_of_that_kind():
    # Of absl's own lists the last occurrence wins, without a word.
    sources = [path for folder in ("drcn_keras", "tools") for path in ROOT.joinpath(folder).rglob("*.py")]
    lists = re.compile(r'(?:DEFINE_(?:multi_string|list)\(|define\("list",)\s*"\w*dir"')
    assert len(sources) > 50
    assert not [path.name for path in sources if lists.search(path.read_text())]


@pytest.mark.parametrize(
    ("missing", "home", "extra", "arguments"),
    [
        ("jinja2", "drcn_keras.reporting.report", "report", ["--model=mobile-x2", "--data_dir=IN", "--output=OUT"]),
        ("matplotlib", "drcn_keras.reporting.study", "report", ["weights", "--model=mobile-x2", "--output=OUT"]),
        ("requests", "drcn_keras.client", "serving", ["IN", "--output=OUT"]),
    ],
)
def test_a_missing_extra_is_one_line_that_names_it(missing, home, extra, arguments, tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "image.png")
    code = f"import sys; sys.modules[{missing!r}] = None\nfrom {home} import run; run()"
    arguments = [text.replace("IN", str(tmp_path)).replace("OUT", str(tmp_path / "out")) for text in arguments]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 1
    assert done.stderr == f"-c: error: {missing} is not installed: pip install 'drcn_keras[{extra}]'.\n"
    assert not (tmp_path / "out").exists()
