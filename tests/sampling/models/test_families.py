"""Networks of other programs go through every program as those of this package do."""

import json
import math
from pathlib import Path

import pytest
import torch

from ddpm_sa import Pipeline
from ddpm_sa.checkpoints import edm_scheduler, lucidrains_scheduler
from ddpm_sa.diffusion.schedule import NoiseSchedule
from ddpm_sa.models.families.lucidrains import LucidrainsUNet
from ddpm_sa.models.families.song import SongUNet
from sampling import ablation, attention, edit, evaluate, sample
from sampling.common.memory import sampling_memory
from tests.models.families.test_lucidrains import SMALL as LUCIDRAINS
from tests.models.families.test_song import SMALL as SONG
from tests.support.reference import randomise_

PROGRAMS = {
    "sample": (sample, ["--num_images", 3, "--scheduler", "heun"]),
    "guided": (sample, ["--num_images", 2, "--guidance.kind", "pag"]),
    "sag": (sample, ["--num_images", 2, "--guidance.kind", "sag"]),
    "edit": (edit, ["--edit", "progressive"]),
    "attention": (attention, ["--query", "3,4"]),
    "ablation": (ablation, ["--num_images", 2]),
}


def pipelines() -> dict[str, Pipeline]:
    lucidrains, song = LucidrainsUNet(**LUCIDRAINS), SongUNet(**SONG)
    conditional = SongUNet(**SONG, preconditioning="vp", num_class_embeds=3)
    for network in (lucidrains, song, conditional):
        randomise_(network)
    betas = NoiseSchedule.linear(100, 1e-3, 0.1).betas
    return {
        "lucidrains": Pipeline(lucidrains.eval(), lucidrains_scheduler(betas, "pred_v")),
        "edm": Pipeline(song.eval(), edm_scheduler(song)),
        "classes": Pipeline(conditional.eval(), edm_scheduler(conditional)),
    }


@pytest.fixture(scope="module", params=["lucidrains", "edm", "classes"])
def folder(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(request.param) / "model"
    pipelines()[request.param].save_pretrained(folder)
    return folder


def test_a_folder_says_its_class_and_opens_with_the_same_images(folder):
    config = json.loads((folder / "unet" / "config.json").read_text())
    again = Pipeline.from_pretrained(folder)
    assert type(again.unet).__name__ == config["_class_name"]
    saved = pipelines()[folder.parent.name.rstrip("0123456789")]
    images = []
    for pipeline in (saved, again):
        pipeline.set_progress_bar_config(disable=True)
        images.append(pipeline(num_images=2, steps=3, output_type="pt").images)
    assert torch.equal(*images)


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_take_it(name, folder, run_main, tmp_path):
    program, words = PROGRAMS[name]
    words = ["--model", folder, "--steps", 2, "--output_dir", tmp_path / "out", *words]
    code, _, said = run_main(program.main, *words)
    assert code == 0, said
    assert list((tmp_path / "out").glob("*.png"))


def test_evaluation_takes_it(folder, run_main, tmp_path, pictures):
    words = ["--model", folder, "--steps", 2, "--num_images", 12, "--data", pictures]
    words += ["--features", "tests.support.features:eight", "--output_dir", tmp_path / "out"]
    if "classes" not in folder.parent.name:  # the pictures have no labels
        words += ["--validation", 0.4, "--likelihood", 1, "--losses", 2]
    code, _, said = run_main(evaluate.main, *words)
    assert code == 0, said
    told = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    [found] = [result for result in told["results"] if result["name"] == str(folder)]
    assert math.isfinite(found["frechet"])


def test_memory_is_forecast_for_its_own_architecture(folder):
    pipeline = Pipeline.from_pretrained(folder)
    assert 0 < sampling_memory(pipeline, 1) < sampling_memory(pipeline, 8)


def test_cached_features_are_refused_in_one_line(folder, run_main, tmp_path):
    words = ["--model", folder, "--steps", 2, "--cache_interval", 2]
    code, _, said = run_main(sample.main, *words, "--output_dir", tmp_path / "out")
    assert code == 2
    assert "cache_interval=2 must be 1 for a" in said
    assert said.count("\n") == 1
