"""One HTML file that shows what models reach: tables, pictures, studies, learning curves; it needs no network.

drcn-report --model=A.keras,B.keras --data_dir=Set5,Set14 --output=DIR

The page carries crops of the images in --data_dir: publish it only where those images may be published.
"""

import shlex
import sys

from absl import flags

from drcn_keras import commands, errors
from drcn_keras.commands import FLAGS


def define_flags():
    """Defines this tool's flags."""
    flags.DEFINE_list("model", [], "trained models or preset names, separated by commas")
    commands.define_folders("data_dir", "folders of test images")
    flags.DEFINE_string("output", "", "folder for report.html")
    flags.DEFINE_string("studies", "", "folder that drcn-study wrote to")
    flags.DEFINE_list("runs", [], "folders of trainings whose learning curves to show, separated by commas")
    commands.require("model", "data_dir", "output")


def main(argv):
    commands.refuse_arguments(argv)
    command = shlex.join(["drcn-report", *sys.argv[1:]])
    with errors.extra("report"):
        from drcn_keras.reporting import page

    path = page.report(FLAGS.model, FLAGS.data_dir, FLAGS.output, FLAGS.studies, FLAGS.runs, command)
    print(f"{path} written: open it in a browser")


def run():
    """The command `drcn-report`."""
    commands.run(main, define_flags)


if __name__ == "__main__":
    run()
