import json
from functools import partial

import numpy as np
import pytest
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image

from ddpm_sa import NoiseSchedule, Pipeline
from ddpm_sa.diffusion.likelihood import prior
from ddpm_sa.image_format import to_tensor
from sampling.paper import main
from tests.support.reference import SMALL, randomise_

STEPS = 20


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Models that diffusers saved, one of which is told classes; images, and others held out."""
    folder = tmp_path_factory.mktemp("place")
    scheduler = DDPMScheduler(STEPS, prediction_type="v_prediction")
    for name, classes in [("model", None), ("classes", 3)]:
        network = randomise_(UNet2DModel(**SMALL, sample_size=8, num_class_embeds=classes))
        DDPMPipeline(network, scheduler).save_pretrained(folder / name)
    random = np.random.default_rng(0)
    for name, count in [("train", 20), ("held", 5)]:
        np.save(folder / f"{name}.npy", random.integers(0, 256, (count, 8, 8, 3), np.uint8))
    return folder


@pytest.fixture
def paper(place, monkeypatch, run_main):
    monkeypatch.chdir(place)
    return partial(run_main, main)


IMAGES = ["--data", "train.npy", "--validation", "held.npy"]
FEW = ["--num_images", 10, "--batch_size", 4, "--features", "tests.support.features:eight"]


def test_every_table_and_figure_is_made(paper, tmp_path, place):
    code, said, error = paper("--model", "model", *IMAGES, *FEW, "--output_dir", tmp_path)
    assert code == 0, error
    figures = [f"figure{number}" for number in (5, 6, 7, 8)]
    assert {path.name for path in tmp_path.iterdir()} == {
        *("table1.json", "table4.json"),
        *(f"{figure}.png" for figure in figures),
    }
    for figure in figures:
        with Image.open(tmp_path / f"{figure}.png") as drawn:
            assert np.asarray(drawn.convert("L")).std() > 10
    record = json.loads((tmp_path / "table1.json").read_text())
    assert record["command"].startswith("python paper.py --model model")
    assert record["settings"]["seed"] == 0
    row, bits = record["table1"]["row"], json.loads((tmp_path / "table4.json").read_text())
    assert record["table1"]["images"] == 10
    assert record["table1"]["held_out_images"] == 5
    assert row["Fréchet distance in features of tests.support.features:eight"] > 0
    found = bits["table4"]
    assert row["bits a dimension, at most"] == found["bits_per_dimension"]
    # All that is sent is the rate and what remains (Ho et al. 2020, section 4.3).
    assert found["bits_per_dimension"] == pytest.approx(found["rate"] + found["decoder"])
    # Before anything is sent there is the prior, which has a closed form.
    held = to_tensor(np.load(place / "held.npy"), (0, 255))
    schedule = NoiseSchedule.from_scheduler(Pipeline.from_pretrained(place / "model").scheduler)
    assert found["prior"] == pytest.approx(float(prior(schedule, held).mean()), rel=1e-5)
    # Table 4 has the whole of them first, then a tenth less each time.
    steps = [line["reverse_steps"] for line in found["table"]]
    assert steps == list(range(STEPS, 0, -STEPS // 10))
    rates = [line["rate"] for line in found["table"]]
    sent = found["prior"] + np.cumsum(found["terms"][::-1])
    assert rates[1:] == pytest.approx([sent[n - 2] for n in steps[1:]], rel=1e-5)
    assert rates == sorted(rates, reverse=True)
    assert "table 4: 5 held-out images" in said


def test_one_experiment_alone_needs_no_images(paper, tmp_path):
    words = ["--model", "model", "--experiments", "[figure6]", "--output_dir", tmp_path]
    code, said, error = paper(*words)
    assert code == 0, error
    assert [path.name for path in tmp_path.iterdir()] == ["figure6.png"]
    assert said == f"figure 6: {tmp_path / 'figure6.png'}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "nowhere"], "nowhere"),
        (["--model", "classes", *IMAGES], "are unconditional; this one is class-conditional"),
        (["--model", "model"], "give --data"),
        (["--model", "model", "--data", "train.npy"], "give --validation"),
        (["--model", "model", *IMAGES, "--experiments", "[table2]"], "experiments"),
        (["--model", "model", *IMAGES, "--experiments", "[]"], "must name at least one of"),
        (["--model", "model", *IMAGES, "--num_images", 1], "num_images=1"),
        (["--model", "model", *IMAGES, "--likelihood", 0], "likelihood=0"),
        (["--model", "model", *IMAGES, "--steps", 21], "20"),
        (["--model", "model", *IMAGES, "--features", "none"], "features='none' is unknown"),
    ],
)
def test_mistakes_end_in_one_line_and_leave_nothing(words, message, paper, tmp_path):
    code, said, error = paper(*words, "--output_dir", tmp_path / "out")
    assert (code, said) == (2, "")
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()
