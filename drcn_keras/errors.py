"""How a command ends when its input is wrong: one line on standard error and a non-zero exit."""

import contextlib
import os
import sys

from absl import app
from absl import flags as absl_flags


class UserError(Exception):
    """Something the user can put right. Its text is one line: what happened, expected, received."""


class ArgumentError(UserError, ValueError):
    """A `UserError` about one argument. Its text starts with the argument's name, which is its flag's in a command."""


class Stopped(Exception):
    """A signal asked for an end and the work was put in a state that can be resumed: exit code 0."""


def run(main):
    """Runs an absl main. A `UserError` or an error of the file system ends in one line, not a traceback.

    Args:
        main: function of argv, the positional arguments with the program's name first.
    """

    def guarded(argv):
        try:
            return main(argv)
        except ArgumentError as error:
            _end(f"--{error}")
        except UserError as error:
            _end(str(error))
        except Stopped as stopped:
            print(stopped, file=sys.stderr)
            return 0
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            _end(f"{where}{error.strerror or error}")
        except KeyboardInterrupt:
            _end("interrupted", code=130)

    app.run(guarded, flags_parser=_parse_flags)


def refuse_arguments(argv):
    """Raises UserError where an absl main was given anything that is no flag."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; every setting is a --flag (--help lists them).")


def _parse_flags(argv):
    try:
        return absl_flags.FLAGS(argv)
    except absl_flags.Error as error:
        _end(f"{error} (--help lists every flag)", code=2)


def _end(message, code=1):
    program = os.path.basename(sys.argv[0])
    if program == "__main__.py" or not program:
        program = "drcn_keras"
    print(f"{program}: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


@contextlib.contextmanager
def tensorflow_notices_hidden():
    """TensorFlow writes to standard error how it was built and that there is no GPU; no setting of its own stops it."""
    if "tensorflow" in sys.modules:
        yield
        return
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
