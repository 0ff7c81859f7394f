"""The command `ddpm-sa`, also `python -m ddpm_sa`: the programs of training/ and sampling/ by name.

A program is imported when its name is read, so that --help, --version and mistakes take no time.
"""

import argparse
import importlib
import os
import sys
from pathlib import Path
from typing import NoReturn

import argcomplete

from ddpm_sa import __doc__ as about
from ddpm_sa import __version__
from ddpm_sa.cli import COMMAND, parse, run_program
from ddpm_sa.errors import UserError

# Name: its module, and what it does.
PROGRAMS = {
    "train": ("training.train", "train a network on images"),
    "sample": ("sampling.sample", "sample images from a model"),
    "edit": ("sampling.edit", "edit images, mix them, or fill in parts of them"),
    "restore": ("sampling.restore", "restore images from measurements: several possible ones"),
    "evaluate": ("sampling.evaluate", "compare samples with data: FID and other measures"),
    "attention": ("sampling.attention", "draw where pixels look while an image is made"),
    "ablation": ("sampling.ablation", "measure what each attention layer is worth"),
    "app": ("sampling.app", "explore a model's attention in the browser"),
    "convert": ("sampling.convert", "turn weights of other projects into a model folder"),
    "export": ("sampling.export", "write a network as ONNX or .pt2, to run elsewhere"),
    "paper": ("sampling.paper", "repeat the experiments of Ho et al. 2020 on a model"),
}
EPILOG = """\
ddpm-sa PROGRAM --help lists all settings of a program.

on several processes:
  torchrun --nproc_per_node 2 -m ddpm_sa train --config mnist
  accelerate launch -m ddpm_sa train --config mnist

completion of programs and settings by the Tab key (bash and zsh):
  eval "$(register-python-argcomplete ddpm-sa)"
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} ({COMMAND} --help lists the programs)")


def main() -> NoReturn:
    """Start the program that the command line names; exit 2 with one line if there is none."""
    run_program(_start)


def programs_root() -> Path:
    """The folder that holds training/ and sampling/: the checkout's, or the one in the wheel."""
    installed = Path(__file__).with_name("programs")
    return installed if installed.is_dir() else Path(__file__).parents[1]


def _start() -> None:
    if "_ARGCOMPLETE" in os.environ:
        _complete(os.environ["COMP_LINE"])
    words = sys.argv[1:]
    if words and words[0] in PROGRAMS:
        _run(*words)
    if words and not words[0].startswith("-"):
        known = ", ".join(PROGRAMS)
        raise UserError(f"{words[0]!r} is not a program of {COMMAND}; the programs are {known}")
    _top_parser().parse_args(words)


def _complete(line: str) -> NoReturn:
    """Answer a shell that asks for the next word of this line."""
    words = line.split()
    if not line[-1:].isspace():  # the last word is the one asked for
        words.pop()
    if len(words) < 2 or words[1] not in PROGRAMS:
        argcomplete.autocomplete(_top_parser())
    # The program's own parser answers. To argcomplete its name is then the second word, as it is
    # in `python FILE`.
    os.environ["_ARGCOMPLETE"] = "2"
    if words[1] == "train":
        # Its settings lie in a module that imports no torch, and so takes no seconds.
        sys.path.insert(0, str(programs_root()))
        parse(importlib.import_module("training.config").TrainConfig, [])
    _run(words[1])


def _top_parser() -> argparse.ArgumentParser:
    lines = (f"  {name:<11}{purpose}\n" for name, (_, purpose) in PROGRAMS.items())
    parser = _Parser(
        prog=COMMAND,
        usage=f"{COMMAND} PROGRAM [--SETTING VALUE ...]",
        description=(about or "").splitlines()[0],
        epilog=f"programs:\n{''.join(lines)}\n{EPILOG}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{COMMAND} {__version__}")
    parser.add_argument("PROGRAM", choices=PROGRAMS, help=argparse.SUPPRESS)
    return parser


def _run(name: str, *words: str) -> NoReturn:
    """Run a program as its own file would, under the name that its user typed."""
    sys.argv = [f"{COMMAND} {name}", *words]
    # First, as for the file itself: the user's folder may have a training/ of its own.
    sys.path.insert(0, str(programs_root()))
    run_program(importlib.import_module(PROGRAMS[name][0]).main)


if __name__ == "__main__":
    main()
