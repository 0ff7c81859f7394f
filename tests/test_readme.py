"""What the README says, typed as written."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler

from ddpm_sa import Pipeline, UNet, preset
from ddpm_sa.cli import join_repeated_flags, parse
from sampling.ablation import Settings as AblationSettings
from sampling.app import Settings as AppSettings
from sampling.attention import Settings as AttentionSettings
from sampling.attention import gather_queries
from sampling.edit import Settings as EditSettings
from sampling.evaluate import Settings as EvaluateSettings
from sampling.sample import Settings as SampleSettings
from training.config import TrainConfig

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(python)?\n(.*?)```", TEXT, flags=re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language]
SHELL = "\n".join(code for language, code in BLOCKS if not language).replace("\\\n", " ")
PROGRAMS = {
    "training/train.py": TrainConfig,
    "sampling/sample.py": SampleSettings,
    "sampling/ablation.py": AblationSettings,
    "sampling/app.py": AppSettings,
    "sampling/edit.py": EditSettings,
    "sampling/evaluate.py": EvaluateSettings,
    "sampling/attention.py": AttentionSettings,
}
COMMANDS = [line for line in SHELL.splitlines() if any(name in line for name in PROGRAMS)]


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_python_in_the_readme_runs(code, tmp_path, monkeypatch):
    torch.manual_seed(0)
    settings = preset("tiny").unet | {"in_channels": 1, "out_channels": 1}
    scheduler = DDPMScheduler(**preset("tiny").scheduler)
    Pipeline(UNet(**settings), scheduler).save_pretrained(tmp_path / "runs/demo/model")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert len(names["images"]) in (4, 16)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_in_the_readme_are_understood(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(command, comments=True)
    name = next(word for word in words if word in PROGRAMS)
    rest = words[words.index(name) + 1 :]
    several = name == "sampling/evaluate.py"
    parse(PROGRAMS[name], join_repeated_flags(rest, "model") if several else gather_queries(rest))


def test_readme_has_both_of_these():
    assert len(PYTHON) == 2
    assert len(COMMANDS) >= 5
