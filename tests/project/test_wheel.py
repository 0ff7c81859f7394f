"""What is built and installed: the wheel in an environment of its own, away from the checkout."""

import importlib.metadata
import json
import os
import shlex
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from ddpm_sa import __version__
from tests.support.runs import ROOT, environment, metrics

pytestmark = pytest.mark.slow

CONFIGS = {"cifar10", "folder", "lsun256", "mnist"}
TORCHRUN = ("python", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
# On a CPU `--cpu --num_processes 2` starts one process, and --multi_gpu starts as many as it says.
ACCELERATE = (
    *("python", "-m", "accelerate.commands.launch", "--num_processes", "2", "--multi_gpu"),
    *("--num_machines", "1", "--dynamo_backend", "no", "--mixed_precision", "no"),
)
TINY_RUN = (
    *("--config", "mnist", "--steps", "4", "--batch_size", "8", "--model.preset", "tiny"),
    *("--log_every", "2", "--mixed_precision", "no", "--tracker", "none"),
)


@dataclass(frozen=True)
class Installed:
    """An environment that has the wheel, and a folder to work in that holds nothing at first."""

    bin: Path
    folder: Path

    def __call__(self, *words: str, code: int = 0) -> str:
        """Type a command there: what it printed."""
        ended = subprocess.run(
            [str(self.bin / words[0]), *words[1:]],
            cwd=self.folder,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert ended.returncode == code, ended.stdout + ended.stderr
        return ended.stdout if code == 0 else ended.stderr


def here(*words: str | Path) -> str:
    """Run a module of this environment."""
    command = [sys.executable, "-m", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an sdist, and of a wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    here("build", "--outdir", folder, ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    root = tmp_path_factory.mktemp("environment")
    venv.create(root, symlinks=True)
    here("pip", "--python", root / "bin" / "python", "install", "--quiet", "--no-deps", wheel)
    # Its dependencies are this environment's. What this one has by a .pth, the checkout, is not.
    (site,) = root.glob("lib/*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    return Installed(root / "bin", tmp_path_factory.mktemp("empty"))


@pytest.fixture(scope="module")
def run(installed: Installed) -> Path:
    """A run of the command."""
    words = ("--steps", "20", "--output_dir", "run", "--tracker", "none")
    printed = installed("ddpm-sa", "train", "--config", "mnist", *words)
    assert "processes   1 on cpu" in printed
    return installed.folder / "run"


def names(archive: Sequence[str], depth: int) -> set[str]:
    return {"/".join(name.split("/")[:depth]) for name in archive}


def test_wheel_holds_one_package_with_the_programs_and_their_configurations(wheel: Path) -> None:
    files = zipfile.ZipFile(wheel).namelist()
    assert names(files, 1) == {"ddpm_sa", f"ddpm_sa-{__version__}.dist-info"}
    assert "ddpm_sa/py.typed" in files
    programs = "ddpm_sa/programs"
    for room in ("training", "sampling"):
        modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / room).rglob("*.py")}
        assert {f"{programs}/{name}" for name in modules} <= set(files)
    assert {f"{programs}/training/configs/{name}.yaml" for name in CONFIGS} <= set(files)


def test_sdist_holds_what_builds_tests_and_explains_the_package(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"ddpm_sa", "training", "sampling", "tests", "docs"} <= names(sorted(inside), 1)
    assert {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "constraints.txt"} <= inside


def test_both_are_what_an_index_accepts(built: Path) -> None:
    here("twine", "check", "--strict", *sorted(built.iterdir()))


def test_metadata_declares_every_package_that_is_imported(wheel: Path) -> None:
    metadata = importlib.metadata.PathDistribution(zipfile.Path(wheel) / wheel_info(wheel)).metadata
    needed = {
        word.partition(">")[0].partition("[")[0].lower()
        for word in metadata.get_all("Requires-Dist") or []
        if "extra ==" not in word
    }
    assert {"numpy", "pyarrow", "pyyaml", "safetensors", "tqdm", "huggingface-hub"} <= {
        name.replace("_", "-") for name in needed
    }
    assert metadata["Version"] == __version__


def wheel_info(wheel: Path) -> str:
    return f"ddpm_sa-{__version__}.dist-info/"


def test_nothing_of_the_checkout_is_found(installed: Installed) -> None:
    place = installed("python", "-c", "import ddpm_sa; print(ddpm_sa.__file__)")
    assert Path(place).is_relative_to(installed.bin.parent)
    for name in ("training", "sampling", "tests"):
        told = installed("python", "-c", f"import {name}", code=1)
        assert f"No module named '{name}'" in told


def test_version_and_help(installed: Installed) -> None:
    assert installed("ddpm-sa", "--version") == f"ddpm-sa {__version__}\n"
    assert installed("python", "-m", "ddpm_sa", "--version") == f"ddpm-sa {__version__}\n"
    assert "convert" in installed("ddpm-sa", "--help")
    told = installed("ddpm-sa", "trian", code=2)
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    "program", ["edit", "restore", "ablation", "app", "convert", "export", "paper"]
)
def test_programs_that_are_not_run_below_are_found_too(installed: Installed, program: str) -> None:
    assert f"usage: ddpm-sa {program} " in installed("ddpm-sa", program, "--help")


def test_training_leaves_a_model(run: Path) -> None:
    assert (run / "model" / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    assert metrics(run)[-1]["step"] == 20


def test_recorded_configuration_repeats_the_run(run: Path, installed: Installed) -> None:
    words = ("--config", "run/config.yaml", "--output_dir", "again")
    installed("ddpm-sa", "train", *words)
    assert metrics(installed.folder / "again") == metrics(run)
    first, second = (
        yaml.safe_load((folder / "config.yaml").read_text()) | {"output_dir": None}
        for folder in (run, installed.folder / "again")
    )
    assert first == second


def test_sampling_and_attention_take_the_model(run: Path, installed: Installed) -> None:
    words = ("--model", "run", "--steps", "3")
    installed("ddpm-sa", "sample", *words, "--num_images", "2", "--output_dir", "samples")
    assert (installed.folder / "samples" / "000001.png").is_file()
    installed("ddpm-sa", "attention", *words, "--output_dir", "looks")
    assert (installed.folder / "looks" / "attention.png").is_file()


def test_evaluation_records_a_command_that_can_be_typed_again(
    run: Path, installed: Installed
) -> None:
    words = ("--model", "run", "--data", "data", "--num_images", "4", "--steps", "2")
    installed("ddpm-sa", "sample", "--model", "run", "--steps", "2", "--output_dir", "data")
    installed("ddpm-sa", "evaluate", *words, "--output_dir", "measured")
    record = json.loads((installed.folder / "measured" / "evaluation.json").read_text())
    command = shlex.split(record["command"])
    assert command[:2] == ["ddpm-sa", "evaluate"]
    before = record["results"]
    installed(*command)
    record = json.loads((installed.folder / "measured" / "evaluation.json").read_text())
    assert record["results"] == before


@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_two_processes_train_as_one(launcher: tuple[str, ...], installed: Installed) -> None:
    name = launcher[2].partition(".")[0]
    printed = installed(*launcher, "-m", "ddpm_sa", "train", *TINY_RUN, "--output_dir", name)
    assert "processes   2 on cpu" in printed
    if not (installed.folder / "one").exists():
        installed("python", "-m", "ddpm_sa", "train", *TINY_RUN, "--output_dir", "one")
    one, two = (metrics(installed.folder / folder) for folder in ("one", name))
    assert [row["step"] for row in two] == [2, 4]
    # Gradients of halves of a batch add up in another order.
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-5)


def test_sampling_is_shared_among_processes(run: Path, installed: Installed) -> None:
    words = ("--model", "run", "--steps", "2", "--num_images", "4", "--output_dir", "shared")
    installed(*TORCHRUN, "-m", "ddpm_sa", "sample", *words)
    record = json.loads((installed.folder / "shared" / "samples.json").read_text())
    assert len(list((installed.folder / "shared").glob("0*.png"))) == 4
    assert record["environment"]["processes"] == 2


def test_a_folder_named_training_does_not_hide_the_programs(installed: Installed) -> None:
    """`python -m` puts the user's folder first on sys.path."""
    (installed.folder / "training").mkdir(exist_ok=True)
    (installed.folder / "training" / "__init__.py").write_text("raise RuntimeError('not this')")
    assert os.listdir(installed.folder / "training") == ["__init__.py"]
    assert "usage: ddpm-sa train " in installed("python", "-m", "ddpm_sa", "train", "--help")
