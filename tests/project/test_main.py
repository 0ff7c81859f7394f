"""The command `ddpm-sa`: the programs by their names, and settings by theirs."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ddpm_sa import __version__
from ddpm_sa.__main__ import PROGRAMS, programs_root
from ddpm_sa.cli import as_started, command_line, parse
from tests.support.runs import ROOT
from training.config import TrainConfig


def command(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command of the checkout."""
    return subprocess.run(
        [sys.executable, "-m", "ddpm_sa", *words],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_version_is_the_package_s() -> None:
    ended = command("--version")
    assert (ended.returncode, ended.stdout) == (0, f"ddpm-sa {__version__}\n")
    assert f"version: {__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_help_has_a_line_for_each_program() -> None:
    ended = command("--help")
    assert ended.returncode == 0
    for name, (_, purpose) in PROGRAMS.items():
        lines = [line for line in ended.stdout.splitlines() if line.split()[:1] == [name]]
        assert len(lines) == 1
        assert lines[0].endswith(purpose)
    assert 'eval "$(register-python-argcomplete ddpm-sa)"' in ended.stdout


def test_every_program_is_in_the_command() -> None:
    files = [ROOT / "training/train.py", *sorted((ROOT / "sampling").glob("*.py"))]
    programs = [file for file in files if file.stem != "__init__"]
    assert {module for module, _ in PROGRAMS.values()} == {
        f"{file.parent.name}.{file.stem}" for file in programs
    }
    assert all(module.endswith(f".{name}") for name, (module, _) in PROGRAMS.items())
    assert programs_root() == ROOT


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], f"'trian' is not a program of ddpm-sa; the programs are {', '.join(PROGRAMS)}"),
        ([], "PROGRAM (ddpm-sa --help lists the programs)"),
        (["--steps", "3"], "(ddpm-sa --help lists the programs)"),
        (["train", "--steps", "0"], "output_dir"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line_and_exit_code_2(words: list[str], message: str) -> None:
    ended = command(*words)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1
    assert message in ended.stderr


def test_what_names_the_programs_imports_none_of_them() -> None:
    line = (
        "import sys\n"
        "from ddpm_sa.__main__ import main\n"
        "sys.argv = ['ddpm-sa', 'trian']\n"
        "try:\n    main()\n"
        "except SystemExit:\n    print(*sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True)
    loaded = set(told.stdout.split())
    assert not loaded & {"torch", "diffusers", "numpy", "accelerate", "training", "sampling"}


def test_help_of_a_program_is_its_docstring_in_the_words_of_the_command() -> None:
    told = command("train", "--help").stdout
    assert told.startswith("usage: ddpm-sa train [")
    assert "\nTrain a U-Net: `accelerate launch -m ddpm_sa train --config mnist`.\n" in told
    assert "--optim.lr" in told
    assert "training/" not in told


def test_programs_are_named_as_they_were_started(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "python sampling/sample.py --model a\n"
        "torchrun --nproc_per_node 2 sampling/sample.py ...\n"
        "accelerate launch training/train.py --config training/configs/mnist.yaml\n"
        "as sampling/sample.py makes them"
    )
    monkeypatch.setattr(sys, "argv", ["sampling/sample.py"])
    assert as_started(text) == text
    monkeypatch.setattr(sys, "argv", ["ddpm-sa sample"])
    assert as_started(text).splitlines() == [
        "ddpm-sa sample --model a",
        "torchrun --nproc_per_node 2 -m ddpm_sa sample ...",
        "accelerate launch -m ddpm_sa train --config mnist",
        "as ddpm-sa sample makes them",
    ]


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["ddpm-sa evaluate", "--data", "my images"], "ddpm-sa evaluate --data 'my images'"),
        (["sampling/evaluate.py", "--seed", "1"], "python sampling/evaluate.py --seed 1"),
        (["/my programs/evaluate.py"], "python '/my programs/evaluate.py'"),
    ],
    ids=str,
)
def test_a_recorded_command_can_be_typed_again(
    argv: list[str], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    assert command_line() == line
    assert shlex.split(line)[-len(argv[1:]) or len(argv) + 1 :] == argv[1:]


@pytest.mark.parametrize("name", ["mnist", "folder", "cifar10", "lsun256"])
def test_a_configuration_is_found_by_its_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ["--data.source", "images"]
    by_path = parse(TrainConfig, ["--config", str(ROOT / f"training/configs/{name}.yaml"), *more])
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()  # images, say
    assert parse(TrainConfig, ["--config", name, *more]) == by_path
    assert parse(TrainConfig, ["--config", name, *more, "--seed", "9"]).seed == 9


def test_a_file_comes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mnist").write_text("output_dir: mine\ndata:\n  source: images\n")
    assert parse(TrainConfig, ["--config", "mnist"]).output_dir == "mine"


def test_a_name_that_no_configuration_has_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match="minst is neither a file nor one of cifar10, folder, "):
        parse(TrainConfig, ["--config", "minst"])


@pytest.mark.parametrize(
    ("line", "completions"),
    [
        ("ddpm-sa a", ["attention", "ablation", "app"]),
        ("ddpm-sa --v", ["--version"]),
        ("ddpm-sa train --config m", ["mnist"]),
        ("ddpm-sa train --config mnist --ema.", ["--ema.decay", "--ema.warmup"]),
    ],
    ids=str,
)
def test_a_shell_completes_programs_settings_and_configurations(
    line: str, completions: list[str], tmp_path: Path
) -> None:
    """As the function of register-python-argcomplete asks."""
    answer = tmp_path / "answer"
    ended = command(
        _ARGCOMPLETE="1",
        _ARGCOMPLETE_IFS="\n",
        _ARGCOMPLETE_STDOUT_FILENAME=str(answer),
        COMP_TYPE="9",
        COMP_LINE=line,
        COMP_POINT=str(len(line)),
    )
    assert ended.returncode == 0, ended.stderr
    found = {word.strip() for word in answer.read_text().split("\n")}
    assert set(completions) <= found
    assert all(word.startswith(line.split()[-1]) for word in found)


def test_the_training_is_set_up_before_torch_is_loaded() -> None:
    """It then quietens torch, and notes who started it; by both ways to start it."""
    line = (
        "import os, sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch':\n"
        "            print(os.environ.get('TORCH_CPP_LOG_LEVEL'), 'training' in sys.modules)\n"
        "            os._exit(0)\n"
        "sys.meta_path.insert(0, Watch())\n"
        "import runpy\n"
    )
    for start in (
        "runpy.run_path('training/train.py', run_name='__main__')",
        "sys.argv = ['ddpm-sa', 'train']; runpy.run_module('ddpm_sa', run_name='__main__')",
    ):
        environment = {k: v for k, v in os.environ.items() if k != "TORCH_CPP_LOG_LEVEL"}
        told = subprocess.run(
            [sys.executable, "-uc", line + start],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert told.stdout == "ERROR True\n", start
