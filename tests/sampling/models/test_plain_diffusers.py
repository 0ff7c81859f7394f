"""Networks that plain diffusers saved go through every program unchanged."""

import shutil
from pathlib import Path

import pytest
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image

from sampling import ablation, attention, edit, restore, sample
from tests.support.reference import SMALL, randomise_

PROGRAMS = {
    "sample": (sample, ["--num_images", 3, "--scheduler", "heun", "--animation", "gif"]),
    "guided": (sample, ["--num_images", 2, "--guidance.kind", "pag", "--cache_interval", 2]),
    "edit": (edit, ["--edit", "progressive"]),
    "restore": (restore, ["--task", "deblur", "--image", "a.png"]),
    "attention": (attention, ["--query", "3,4"]),
    "ablation": (ablation, ["--num_images", 2]),
}


@pytest.fixture(scope="module", params=[None, 4], ids=["unconditional", "classes"])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("diffusers") / "model"
    config = SMALL | {"sample_size": 8, "num_class_embeds": request.param}
    network = randomise_(UNet2DModel(**config))
    DDPMPipeline(network, DDPMScheduler()).save_pretrained(folder)
    return folder


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_take_a_folder_of_diffusers(name, folder, run_main, tmp_path, monkeypatch):
    program, words = PROGRAMS[name]
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8), "grey").save("a.png")
    before = contents(folder)
    assert {path.name for path in before} >= {"model_index.json", "config.json"}
    words = ["--model", folder, "--steps", 2, "--output_dir", tmp_path / "out", *words]
    code, _, said = run_main(program.main, *words)
    assert code == 0, said
    assert list((tmp_path / "out").glob("*.png"))
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["attention", "ablation"])
def test_programs_take_a_run_folder(name, folder, run_main, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(folder, run / "model")
    (run / "config.yaml").touch()
    program, words = PROGRAMS[name]
    words = ["--model", run, "--steps", 2, "--output_dir", tmp_path / "out", *words]
    code, _, said = run_main(program.main, *words)
    assert code == 0, said
    code, _, said = run_main(program.main, *words, "--weights", "raw")
    assert code == 2
    assert "training keeps raw weights if" in said
