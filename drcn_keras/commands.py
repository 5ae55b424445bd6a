"""What the commands share: their environment, the flags of one name, and how they end when their input is wrong."""

import math
import os
import re
import sys
from collections.abc import Callable

from absl import app, flags

from drcn_keras import entry
from drcn_keras.errors import Stopped, UserError
from drcn_keras.files import make_folder

FLAGS = flags.FLAGS
_FLAGFILES = os.path.join(os.path.dirname(__file__), "flagfiles")


def run(main: Callable[[list[str]], object], define_flags: Callable[[], None], known_only: bool = False) -> None:
    """Runs a command. A `UserError` or an error of the file system ends in one line, not a traceback.

    Args:
        main: function of argv, the positional arguments with the program's name first; it reads `FLAGS`.
        define_flags: function that defines the command's flags.
        known_only: leave flags that are not defined in argv, for who else reads it.
    """
    entry.watch_signals()  # Training, once it has begun, writes a checkpoint and has handlers of its own.
    prepare_tensorflow()
    known = set(FLAGS)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # Closed by who started this process.
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    # A file's name may hold what standard output cannot encode.
    sys.stdout.reconfigure(errors="backslashreplace")
    define_flags()
    # --help shows what the program's own file defines, and an installed command's file is a few lines of pip's.
    for name in set(FLAGS) - known:
        FLAGS.register_key_flag_for_module(sys.argv[0], FLAGS[name])
    app.run(lambda argv: _guarded(main, argv), flags_parser=lambda argv: _parse_flags(argv, known_only))


def prepare_tensorflow() -> None:
    """What is set before TensorFlow is imported."""
    # oneDNN halves the time of a small network on CPUs where TensorFlow leaves it off.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    # Notices about how TensorFlow was built would bury the one line of an error.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def refuse_arguments(argv: list[str]) -> None:
    """Raises UserError where an absl main was given anything that is no flag."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; every setting is a --flag (--help lists them).")


def require(*names: str, values: flags.FlagValues = FLAGS) -> None:
    """Makes flags required: neither left out nor empty."""
    for name in names:
        flags.register_validator(
            name, lambda value: value not in (None, "", []), message="is required", flag_values=values
        )


def default_model(scale: float | None, sized: bool = False) -> str:
    """The preset for an enlargement, or for x2 where it is None.

    The small ones, each of one scale, are the default: a sixth of the work, and by their cards 0.11 dB behind
    `drcn-x234` on Set5 at x2, 0.19 at x3 and 0.23 at x4. Another factor than theirs, or a width or height (`sized`),
    takes the quicker of the two networks for every scale.
    """
    if sized or scale not in (None, 2, 3, 4):
        return "drcn-x234"
    return f"mobile-x{2 if scale is None else int(scale)}"


class _Folders(flags.MultiFlag):
    """Every folder of every occurrence; one whose own name has a comma counts as one."""

    def parse(self, arguments):
        given = [arguments] if isinstance(arguments, str) else arguments
        parts = [part for text in given for part in ([text] if os.path.isdir(text) else text.split(","))]
        super().parse([part.strip() for part in parts if part.strip()])


def define_folders(name: str, text: str, values: flags.FlagValues = FLAGS) -> None:
    """Defines a flag that is a list of folders, None where it is not given."""
    text += "; separated by commas, or the flag repeated"
    flag = _Folders(flags.ArgumentParser(), flags.ArgumentSerializer(), name, None, text)
    flags.DEFINE_flag(flag, flag_values=values)


def whole_numbers(name: str, least: int) -> list[int]:
    """The numbers of a flag that is a list.

    Raises:
        UserError: there is none, or one is not a whole number >= `least` of at most nine digits.
    """
    texts = FLAGS[name].value
    if not texts or not all(text.isdecimal() and len(text) <= 9 and int(text) >= least for text in texts):
        raise UserError(
            f"--{name} must be whole numbers >= {least}, separated by commas; received {','.join(texts)!r}."
        )
    return [int(text) for text in texts]


def define_output(text: str) -> None:
    """Defines --output, a file to write, which is required, and --overwrite."""
    flags.DEFINE_string("output", None, text)
    flags.DEFINE_boolean("overwrite", False, "replace the file of --output")
    require("output")


def checked_output(suffix: str, *beside: str) -> str:
    """The path of --output, whose folder exists from here on.

    Args:
        suffix: that it must have.
        beside: suffixes of files that are written next to it.

    Raises:
        UserError: it has another suffix, or one of the files exists and --overwrite is not given.
    """
    path = FLAGS.output
    if not path.endswith(suffix):
        raise UserError(f"--output: expected a name that ends in {suffix}; received {path}.")
    for other in (suffix, *beside):
        written = path.removesuffix(suffix) + other
        if os.path.exists(written) and not FLAGS.overwrite:
            raise UserError(f"{written} exists; --overwrite replaces it.")
    make_folder(os.path.dirname(path) or ".")
    return path


def define_preset_flags() -> None:
    """Defines --preset_flags, the flagfiles of the package by name."""
    flags.DEFINE_string("preset_flags", None, f"a flagfile of the package by its name: {', '.join(_flagfiles())}")


def _flagfiles():
    return sorted(os.path.splitext(name)[0] for name in os.listdir(_FLAGFILES))


def _with_flagfiles(argv):
    """argv with --flagfile=PATH for every --preset_flags=NAME."""
    if "preset_flags" not in FLAGS:
        return argv
    arguments, given = [], iter(argv)
    for argument in given:
        name, equals, value = argument.lstrip("-").partition("=")
        if name != "preset_flags" or not argument.startswith("-"):
            arguments.append(argument)
            continue
        value = value if equals else next(given, "")
        if value not in _flagfiles():
            raise flags.Error(f"--preset_flags must be one of {', '.join(_flagfiles())}; received {value!r}")
        arguments.append(f"--flagfile={os.path.join(_FLAGFILES, value)}.cfg")
    return arguments


def _parse_flags(argv, known_only):
    try:
        positional = FLAGS(_with_flagfiles(argv), known_only=known_only)
        for name in FLAGS:
            # Its limits let not-a-number pass, which is on neither side of any.
            if isinstance(FLAGS[name].value, float) and not math.isfinite(FLAGS[name].value):
                raise flags.Error(f"flag --{name}={FLAGS[name].value}: expected a finite number")
        if "preset_flags" in FLAGS and FLAGS.preset_flags:
            raise flags.Error("--preset_flags does not go into a flagfile; expected --flagfile=PATH there")
        return positional
    except flags.Error as error:
        missing = re.findall(r"[Ff]lag --(\w+)(?:=\S*: is required| must have a value other than None)", str(error))
        wrong = f"{', '.join(f'--{name}' for name in missing)} {'is' if len(missing) == 1 else 'are'} required"
        _end(f"{wrong if missing else error} (--help lists every flag)", code=2)


def _guarded(main, argv):
    try:
        with entry.unwinding():
            return main(argv)
    except UserError as error:
        _end(_with_dashes(str(error)))
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _end(f"{where}{error.strerror or error}")
    except MemoryError as error:
        _end(f"not enough memory. {error}")
    except KeyboardInterrupt:
        _end("interrupted", code=130)


def _with_dashes(message):
    """The library names an argument `tile` or `scale=3`; to who uses a command they are --tile and --scale=3."""
    return re.sub(r"`(\w+)(=[^`]*)?`", lambda found: f"--{found[0][1:-1]}" if found[1] in FLAGS else found[0], message)


def _end(message, code=1):
    print(f"{entry.program()}: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
