"""sampling/attention.py. Its drawing is looked at by people; here, what it draws and refuses."""

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image

from ddpm_sa import Pipeline, UNet, measure_attention, record_attention
from ddpm_sa.image_format import ImageFormat
from ddpm_sa.samplers.method import Method
from sampling.attention import main
from sampling.common.trajectory import AttentionTrajectory, brightest_and_darkest
from sampling.figures.attention import draw_layers, draw_trajectory
from sampling.figures.attention_measures import draw_measures
from tests.support.reference import SMALL, randomise_

LAYERS = [
    "down_blocks.1.attentions.0",
    "mid_block.attentions.0",
    "up_blocks.0.attentions.0",
    "up_blocks.0.attentions.1",
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of untrained networks: grey, of two channels with classes, and without attention."""
    folder = tmp_path_factory.mktemp("models")
    nothing = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    for name, channels, more in [
        ("grey", 1, {}),
        ("two", 2, {"num_class_embeds": 3}),
        ("weaker", 2, {"num_class_embeds": 3}),
        ("none", 1, nothing | {"add_attention": False}),
    ]:
        config = {"sample_size": (8, 12), "in_channels": channels, "out_channels": channels}
        unet = randomise_(UNet(**SMALL | config | more), seed=len(name))
        Pipeline(unet, DDPMScheduler()).save_pretrained(folder / name)
    return folder


@pytest.fixture
def attention(run_main):
    """Run the program: words -> (exit code, stdout, stderr)."""
    return partial(run_main, main)


def numbers(folder):
    with np.load(folder / "attention.npz") as file:
        return dict(file)


@pytest.mark.parametrize("scheduler", ["ddim", pytest.param("heun", marks=pytest.mark.slow)])
def test_numbers_are_those_of_record_attention_and_of_the_pipeline(
    scheduler, models, attention, tmp_path
):
    words = ["--query", "2,11", "--query=7,0", "--steps", 4, "--seed", 3, "--index", 5]
    code, said, error = attention(
        "--model", models / "grey", "--output_dir", tmp_path, "--scheduler", scheduler, *words
    )
    assert code == 0, error
    assert said.startswith(f"queries 2,11, 7,0 in {LAYERS[-1]}: ")
    figures = ["attention.gif", "attention.png", "layers-2-11.png", "layers-7-0.png"]
    names = sorted([*figures, "measures.png", "attention.npz"])
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for figure in (*figures, "measures.png"):
        with Image.open(tmp_path / figure) as drawn:
            assert min(drawn.size) > 300
    evaluations = {"ddim": 4, "heun": 7}[scheduler]
    with Image.open(tmp_path / "attention.gif") as drawn:
        assert getattr(drawn, "n_frames") == evaluations  # noqa: B009

    found = numbers(tmp_path)
    pipeline = Pipeline.from_pretrained(models / "grey")
    with (
        record_attention(pipeline.unet, queries=[(2, 11), (7, 0)], heads="all") as maps,
        measure_attention(pipeline.unet) as measures,
    ):
        (batch,) = pipeline.batches([5], Method(steps=4, scheduler=scheduler), 3, 1)
    assert {name for name in found if name.startswith("maps/")} == {f"maps/{n}" for n in LAYERS}
    for name in LAYERS:
        kept = torch.cat(maps[name]).numpy()
        assert kept.shape == (evaluations, 4, 2, 4, 6)
        np.testing.assert_array_equal(found[f"maps/{name}"], kept)
        for measure in ("entropy", "distance", "local_share", "overlap"):
            values = torch.cat([getattr(each, measure) for each in measures[name]]).numpy()
            np.testing.assert_array_equal(found[f"{measure}/{name}"], values)
    np.testing.assert_array_equal(found["image"], batch.images[0].numpy())
    np.testing.assert_array_equal(found["queries"], [(2, 11), (7, 0)])
    assert found["x_t"].shape == found["x_0"].shape == (evaluations, 1, 8, 12)
    assert (np.diff(found["timesteps"]) <= 0).all()


GUIDES = {
    "cfg": ["--guidance.null_class", 2],
    "pag": [],
    "seg": ["--guidance.sigma", 1],
    "sag": [],
    "auto": ["--guidance.model", "weaker"],
}


@pytest.mark.parametrize("kind", GUIDES)
def test_with_guidance_the_maps_are_the_models_own_on_the_guided_trajectory(
    kind, models, attention, tmp_path, monkeypatch
):
    monkeypatch.chdir(models)
    words = ["--query", "2,11", "--steps", 3, "--class_label", 1, "--scheduler", "euler_ancestral"]
    guidance = ["--guidance.kind", kind, "--guidance.scale", 2, *GUIDES[kind]]
    code, _, error = attention("--model", "two", "--output_dir", tmp_path, *words, *guidance)
    assert code == 0, error
    found = numbers(tmp_path)

    pipeline = Pipeline.from_pretrained(models / "two")
    options = {"null_class": 2} if kind == "cfg" else {"sigma": 1.0} if kind == "seg" else {}
    if kind == "auto":
        options["weaker"] = Pipeline.from_pretrained(models / "weaker")
    guide = pipeline.guidance(kind, 2.0, **options)
    method = Method(steps=3, scheduler="euler_ancestral", guide=guide)
    condition = pipeline.condition([0], 1)
    (batch,) = pipeline.batches([0], method, 0, 1, condition=condition)
    np.testing.assert_array_equal(found["image"], batch.images[0].numpy())
    plain = dataclasses.replace(method, guide=None)
    (batch,) = pipeline.batches([0], plain, 0, 1, condition=condition)
    assert abs(found["image"] - batch.images[0].numpy()).max() > 0.01

    # The network alone, without a guide, on each x_t of the trajectory.
    with (
        torch.no_grad(),
        record_attention(pipeline.unet, queries=[(2, 11)], heads="all") as maps,
        measure_attention(pipeline.unet) as measures,
    ):
        for x_t, t in zip(found["x_t"], found["timesteps"], strict=True):
            condition.evaluate(pipeline.unet, torch.from_numpy(x_t)[None], torch.tensor([t]))
    for name in LAYERS:
        expected = torch.cat(maps[name]).numpy()
        assert found[f"maps/{name}"].shape == expected.shape == (3, 4, 1, 4, 6)
        # A batch of two may sum in another order than a batch of one.
        np.testing.assert_allclose(found[f"maps/{name}"], expected, atol=1e-6)
        entropies = torch.cat([each.entropy for each in measures[name]]).numpy()
        np.testing.assert_allclose(found[f"entropy/{name}"], entropies, atol=1e-5)


def test_queries_are_chosen_where_none_is_given(models, attention, tmp_path):
    code, said, error = attention(
        "--model", models / "two", "--output_dir", tmp_path, "--steps", 2, "--layer", LAYERS[1]
    )
    assert code == 0, error
    assert f"in {LAYERS[1]}: " in said
    found = numbers(tmp_path)
    assert found["queries"].shape == (2, 2)
    np.testing.assert_array_equal(found["queries"], brightest_and_darkest(found["image"]))


@pytest.mark.slow
def test_queries_lie_in_the_image_where_the_network_sees_more(attention, tmp_path):
    unet = randomise_(UNet(**SMALL | {"in_channels": 1, "out_channels": 1}))
    thin = ImageFormat(channels=1, size=(9, 3))  # the network's is (10, 4)
    Pipeline(unet, DDPMScheduler(), thin).save_pretrained(tmp_path / "model")
    for seed in range(4):
        out = tmp_path / f"{seed}"
        words = ("--model", tmp_path / "model", "--output_dir", out, "--steps", 1, "--seed", seed)
        assert attention(*words)[0] == 0
        found = numbers(out)
        assert found["image"].shape == (1, 10, 4)
        assert (found["queries"] < (9, 3)).all()


def test_the_brightest_and_the_darkest_place_are_found_and_of_equals_the_most_central():
    image = np.full((3, 20, 30), -1, np.float32)
    image[:, 2:7, 10:15] = 1
    image[:, 0, 29] = 1  # one pixel is no place
    bright, dark = brightest_and_darkest(image)
    assert bright == (4, 12)
    assert dark == (9, 14)  # 9, 10 and 14, 15 are in the middle


def random_trajectory(size=(8, 12), evaluations=9, heads=3, queries=((2, 11), (7, 0))):
    """A trajectory whose maps and measures are random numbers."""
    random = np.random.default_rng(0)
    grid = (size[0] // 2, size[1] // 2)
    shape = (evaluations, heads, len(queries))
    maps = {name: random.dirichlet(np.ones(np.prod(grid)), shape) for name in LAYERS}
    measure = {name: random.random(shape[:2]) for name in ("entropy", "distance", "local_share")}
    measure["overlap"] = np.where(np.eye(heads), 1, random.random((*shape[:2], heads)))
    return AttentionTrajectory(
        timesteps=np.linspace(999, 0, evaluations, dtype=np.float32),
        x_t=random.normal(size=(evaluations, 3, *size)).astype(np.float32),
        x_0=random.uniform(-1, 1, (evaluations, 3, *size)).astype(np.float32),
        image=np.zeros((3, *size), np.float32),
        queries=np.array(queries),
        maps={n: array.reshape(*shape, *grid).astype(np.float32) for n, array in maps.items()},
        measures=dict.fromkeys(LAYERS, measure),
        reductions=dict.fromkeys(LAYERS, 2),
    )


def test_every_map_is_drawn_where_it_belongs():
    """Panels are read back: each holds its map's numbers, in the image's coordinates."""
    trajectory = random_trajectory()
    evaluations = trajectory.spread_evaluations(6)
    assert evaluations == [0, 2, 3, 5, 6, 8]
    figure = draw_trajectory(trajectory, LAYERS[1], "title")
    panels = [axis for axis in figure.axes if axis.images]
    assert len(panels) == 4 * 6
    for number, (y, x) in enumerate(trajectory.queries):
        for column, evaluation in enumerate(evaluations):
            panel = panels[(2 + number) * 6 + column]
            expected = trajectory.maps[LAYERS[1]][evaluation, :, number].mean(0)
            np.testing.assert_array_equal(panel.images[0].get_array(), expected)
            assert panel.images[0].get_extent() == [-0.5, 11.5, 7.5, -0.5]
            assert {(*ring.get_ydata(), *ring.get_xdata()) for ring in panel.lines} == {(y, x)}

    figure = draw_layers(trajectory, 1, "title")
    panels = [axis for axis in figure.axes if axis.images]
    expected = [
        trajectory.maps[name][evaluation, :, 1].mean(0)
        for name in LAYERS
        for evaluation in evaluations
    ]
    assert len(panels) == len(expected)
    for panel, values in zip(panels, expected, strict=True):
        np.testing.assert_array_equal(panel.images[0].get_array(), values)
        assert {(*ring.get_ydata(), *ring.get_xdata()) for ring in panel.lines} == {(7, 0)}


def test_measures_are_drawn_whole_a_line_for_each_head():
    trajectory = random_trajectory()
    panels = np.reshape(draw_measures(trajectory, "title").axes, (4, len(LAYERS)))
    for row, name in enumerate(("entropy", "distance", "local_share", "overlap")):
        for panel in panels[row]:
            lines = [line for line in panel.lines if line.get_label().startswith("head")]
            values = trajectory.measures[LAYERS[0]][name]
            if name == "overlap":  # of each head, its mean with the two others
                others = [[1, 2], [0, 2], [0, 1]]
                values = np.stack([values[:, i, o].mean(1) for i, o in enumerate(others)], 1)
            assert len(lines) == 3
            low, high = panel.get_ylim()
            for head, line in enumerate(lines):
                np.testing.assert_allclose(line.get_ydata(), values[:, head])
                assert low <= line.get_ydata().min() <= line.get_ydata().max() <= high


def test_an_image_of_one_grey_is_drawn_without_a_line():
    trajectory = dataclasses.replace(random_trajectory(), x_0=np.zeros((9, 3, 8, 12), np.float32))
    panels = [axis for axis in draw_trajectory(trajectory, LAYERS[1], "title").axes if axis.images]
    assert len(panels) == 24
    assert not any(panel.collections for panel in panels)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--query", "8,0"], "query=8,0 lies outside the image of 8 x 12 pixels; y comes first"),
        (["--query", "0,12"], "query=0,12 lies outside"),
        (["--query", "-1,0"], "query=[(-1, 0)]: -1 must be at least 0"),
        (["--query", "3"], "--query 3: each value is 2 numbers with commas, as in 12,16"),
        (["--query", "1,2,3"], "--query 1,2,3: each value is 2 numbers"),
        (["--query", "1,x"], "query"),
        (["--query"], "--query needs a value"),
        (["--query", "1,1"] * 13, "13 queries are too many"),
        (["--layer", "mid_block"], f"'mid_block' is unknown; known are {', '.join(LAYERS)}"),
        (["--seed", -1], "seed=-1 must be at least 0"),
        (["--index", -1], "index=-1 must be at least 0"),
        (["--steps", 0], "steps=0"),
        (["--scheduler", "none"], "known are ddpm"),
        (["--guidance.scale", 2], "--guidance.scale has no effect: guidance.kind=none"),
        (["--guidance.kind", "auto"], "guidance 'auto' needs a weaker model"),
        (["--scheduler_options.beta", 2], "beta"),
        (["--class_label", 0], "this network is unconditional"),
        (
            ["--model", "two", "--class_label", 3],
            "class '3': the classes of this model have no names; give a number, 0 ... 2",
        ),
        (["--model", "none"], "no attention layer"),
        (["--model", "nowhere"], "nowhere is not a local folder"),
        (["--querry", "1,1"], "--querry"),
        (["--device", "abacus"], "device='abacus' cannot be used"),
    ],
)
def test_mistakes_end_in_one_line_and_leave_nothing(
    words, message, models, attention, tmp_path, monkeypatch
):
    monkeypatch.chdir(models)
    code, said, error = attention("--model", "grey", "--output_dir", tmp_path / "out", *words)
    assert (code, said) == (2, "")
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()


def test_a_file_is_no_output_folder(models, attention, tmp_path):
    (tmp_path / "out").write_text("")
    code, _, error = attention(
        "--model", models / "grey", "--output_dir", tmp_path / "out" / "more"
    )
    assert (code, error.count("\n")) == (2, 1)
    assert "cannot be written: Not a directory" in error
