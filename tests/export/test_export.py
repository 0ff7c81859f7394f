"""Exported networks against the networks themselves, in onnxruntime and in torch's own loader."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from ddpm_sa import Pipeline, UNet, preset
from ddpm_sa.conditions.format import ConditionFormat
from ddpm_sa.conditions.kinds import Downsample
from ddpm_sa.diffusion.schedule import NoiseSchedule
from ddpm_sa.export import check, export_onnx, export_pt2, onnx_file
from ddpm_sa.export.program import capture
from ddpm_sa.image_format import ImageFormat
from examples.onnx_sampling import sample
from tests.support.reference import SMALL, error_of_each_image, randomise_

WRITERS = {"onnx": export_onnx, "pt2": export_pt2}
EVERYWHERE = {
    "down_block_types": ("AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D"),
}
TWO_LEVELS = {"sample_size": 8, "block_out_channels": (32, 32), "layers_per_block": 1}
FAMILIES: dict[str, dict[str, Any]] = {
    "resnet": {
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "resnet_time_scale_shift": "scale_shift",
    },
    "ncsnpp": {
        "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
        "time_embedding_type": "fourier",
    },
    "k_diffusion": {
        "down_block_types": ("KDownBlock2D", "KDownBlock2D"),
        "up_block_types": ("KUpBlock2D", "KUpBlock2D"),
        "layers_per_block": 2,
        "mid_block_type": None,
        "norm_num_groups": None,
    },
    "learned": SMALL | {"time_embedding_type": "learned", "num_train_timesteps": 1000},
}
QUICK = {("ncsnpp", "pt2"), ("learned", "pt2")}


def make(config: dict[str, Any], labels: tuple[str, ...] | None = None, **scheduler: Any):
    unet = randomise_(UNet(**config)).eval()
    images = ImageFormat.from_unet(unet)
    if labels:
        size = images.size
        images = ImageFormat(channels=images.channels, size=size, labels=labels)
    return Pipeline(unet, DDPMScheduler(**scheduler), images)


def tiny() -> Pipeline:
    """Classes, attention at every level."""
    settings = preset("tiny")
    config = settings.unet | EVERYWHERE | {"num_class_embeds": 3}
    return make(config, ("cat", "dog", "cow"), **settings.scheduler)


def mnist() -> Pipeline:
    settings = preset("mnist")
    return make(settings.unet, **settings.scheduler)


def sagan() -> Pipeline:
    return make(preset("tiny").unet | {"attention_kind": "sagan"})


def reader(path: Path) -> Callable[..., Tensor]:
    """(sample, timestep, class_labels or None) -> the output of an exported file."""
    if path.suffix == ".pt2":
        module = torch.export.load(path).module()
        return lambda x, t, labels: module(*(i for i in (x, t, labels) if i is not None))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        inputs = {"sample": x, "timestep": t, "class_labels": labels}
        arrays = {name: i.numpy() for name, i in inputs.items() if i is not None}
        return torch.from_numpy(session.run(["out_sample"], arrays)[0])

    return run


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Callable[..., tuple[Pipeline, Path]]:
    """Export once, for all tests: (model, format, dynamic_size) -> pipeline and file."""
    done = {}

    def export(model: Callable[[], Pipeline], kind: str, dynamic: bool) -> tuple[Pipeline, Path]:
        key = (model, kind, dynamic)
        if key not in done:
            path = tmp_path_factory.mktemp("export") / f"model.{kind}"
            pipeline = model()
            assert WRITERS[kind](pipeline, path, dynamic_size=dynamic) < 1e-4
            done[key] = pipeline, path
        return done[key]

    return export


CASES = [
    pytest.param(tiny, "onnx", True),
    pytest.param(tiny, "pt2", True),
    pytest.param(mnist, "onnx", False),
    pytest.param(mnist, "pt2", False),
    pytest.param(sagan, "pt2", False),
    pytest.param(sagan, "onnx", True, marks=pytest.mark.slow),
    pytest.param(mnist, "onnx", True, marks=pytest.mark.slow),
    pytest.param(mnist, "pt2", True, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("model", "kind", "dynamic"), CASES)
@torch.no_grad()
def test_file_gives_the_network_s_output_at_every_size(model, kind, dynamic, exported):
    pipeline, path = exported(model, kind, dynamic)
    run, config = reader(path), pipeline.unet.config
    side, multiple = config.sample_size, pipeline.unet.size_multiple
    generator = torch.Generator().manual_seed(1)
    for batch in (1, 3, 8):
        for size in ((side, side), (side + 3 * multiple, side - multiple))[: 1 + dynamic]:
            x = torch.randn(batch, config.in_channels, *size, generator=generator)
            t = torch.rand(batch, generator=generator) * 999
            labels = None if config.num_class_embeds is None else torch.arange(batch) % 3
            error = error_of_each_image(run(x, t, labels), pipeline.unet(x, t, labels).sample)
            assert (error < 1e-4).all(), (batch, size)


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        pytest.param(family, kind, marks=[] if (family, kind) in QUICK else pytest.mark.slow)
        for kind in WRITERS
        for family in FAMILIES
    ],
)
@torch.no_grad()
def test_every_kind_of_block_is_exported(family, kind, tmp_path):
    pipeline = make(TWO_LEVELS | {"norm_num_groups": 4} | FAMILIES[family])
    path = tmp_path / f"model.{kind}"
    WRITERS[kind](pipeline, path, dynamic_size=True)
    x, t = torch.randn(5, 3, 12, 10), torch.tensor([999.0, 500.0, 250.0, 10.0, 1.0])
    t = t.long() if family == "learned" else t
    error = error_of_each_image(reader(path)(x, t, None), pipeline.unet(x, t).sample)
    assert (error < 1e-4).all()


@pytest.mark.parametrize("kind", WRITERS)
@torch.no_grad()
def test_half_precision_takes_and_gives_half_precision(kind, tmp_path):
    pipeline = make(SMALL | {"sample_size": 8})
    path = tmp_path / f"model.{kind}"
    WRITERS[kind](pipeline, path, dtype="float16")
    assert pipeline.unet.dtype == torch.float32
    x, t = torch.randn(3, 3, 8, 8), torch.tensor([999.0, 0.5, 20.0])
    made = reader(path)(x.half(), t, None)
    assert made.dtype == torch.float16
    # 11 bits, and a few dozen roundings in a row
    assert (error_of_each_image(made.float(), pipeline.unet(x, t).sample) < 1e-2).all()
    weights = sum(parameter.numel() for parameter in pipeline.unet.parameters())
    assert numbers_of(path, "float16") >= weights
    assert numbers_of(path, "float32") < 100  # frequencies of the timestep's sinusoid


def numbers_of(path: Path, dtype: str) -> int:
    """How many numbers of a type a file holds."""
    if path.suffix == ".pt2":
        weights = torch.export.load(path).state_dict.values()
        return sum(weight.numel() for weight in weights if weight.dtype == getattr(torch, dtype))
    arrays = map(onnx.numpy_helper.to_array, onnx.load(path).graph.initializer)
    return sum(array.size for array in arrays if array.dtype == dtype)


def test_names_shapes_and_types_are_in_the_file(exported):
    _, path = exported(tiny, "onnx", True)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", onnx_file.OPSET)]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    shown = [(i.name, i.shape, i.type) for i in [*session.get_inputs(), *session.get_outputs()]]
    assert shown == [
        ("sample", ["batch", 3, "height", "width"], "tensor(float)"),
        ("timestep", ["batch"], "tensor(float)"),
        ("class_labels", ["batch"], "tensor(int64)"),
        ("out_sample", ["batch", 3, "height", "width"], "tensor(float)"),
    ]


def test_an_unconditional_file_has_no_class_labels_and_its_size(exported):
    _, path = exported(mnist, "onnx", False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [(i.name, i.shape) for i in session.get_inputs()] == [
        ("sample", ["batch", 1, 32, 32]),
        ("timestep", ["batch"]),
    ]


def told(path: Path) -> dict[str, Any]:
    """The metadata of a file."""
    if path.suffix == ".pt2":
        files: dict[str, Any] = {"metadata.json": ""}
        torch.export.load(path, extra_files=files)
        texts = json.loads(files["metadata.json"])
    else:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        texts = session.get_modelmeta().custom_metadata_map
    return {name: json.loads(text) for name, text in texts.items()}


def conditioned() -> Pipeline:
    image_format = ImageFormat(
        channels=3, size=(16, 16), condition=ConditionFormat(kinds=(Downsample(factor=4),))
    )
    network = UNet(**SMALL | {"sample_size": 16, "in_channels": image_format.in_channels})
    return Pipeline(randomise_(network), DDPMScheduler(), image_format)


def test_a_condition_is_further_channels_of_the_sample(exported, tmp_path):
    pipeline, path = exported(conditioned, "pt2", False)
    sample, t = torch.randn(2, 6, 16, 16), torch.tensor([3.0, 700.0])
    with torch.no_grad():
        error = error_of_each_image(reader(path)(sample, t, None), pipeline.unet(sample, t).sample)
    assert (error < 1e-4).all()
    (tmp_path / "images.json").write_text(json.dumps(told(path)["images"]))
    assert ImageFormat.load(tmp_path) == pipeline.image_format


@pytest.mark.parametrize("kind", WRITERS)
def test_schedule_and_image_format_are_in_the_file(kind, exported, tmp_path):
    pipeline, path = exported(tiny, kind, True)
    about = told(path)
    schedule = NoiseSchedule.from_scheduler(pipeline.scheduler)
    assert about["alphas_cumprod"] == schedule.alphas_cumprod.tolist()
    scheduler = DDPMScheduler.from_config(about["scheduler"])
    public = [name for name in scheduler.config if name[0] != "_"]
    assert len(public) > 10
    assert all(scheduler.config[name] == pipeline.scheduler.config[name] for name in public)
    (tmp_path / "images.json").write_text(json.dumps(about["images"]))
    assert ImageFormat.load(tmp_path) == pipeline.image_format
    assert about["sample_size"] == [16, 16]
    assert about["size_multiple"] == 2


def test_a_pt2_file_needs_neither_this_package_nor_diffusers(exported):
    _, path = exported(mnist, "pt2", False)
    line = (
        "import sys; sys.modules |= dict.fromkeys(['ddpm_sa', 'diffusers', 'einops'])\n"
        "import torch\n"
        f"network = torch.export.load({str(path)!r}).module()\n"
        "print(tuple(network(torch.zeros(2, 1, 32, 32), torch.zeros(2)).shape))"
    )
    ended = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True)
    assert ended.stdout == "(2, 1, 32, 32)\n"


@pytest.mark.parametrize(
    ("clip", "kind", "spacing"),
    [
        (True, "epsilon", "leading"),
        pytest.param(False, "v_prediction", "trailing", marks=pytest.mark.slow),
        pytest.param(False, "sample", "linspace", marks=pytest.mark.slow),
    ],
)
def test_example_makes_the_pipeline_s_images(clip, kind, spacing, tmp_path):
    settings = {"clip_sample": clip, "prediction_type": kind, "timestep_spacing": spacing}
    # 10 x 7 pixels in a network of two levels: padded to 10 x 8, and cut.
    unet = randomise_(UNet(**SMALL, sample_size=(10, 8), num_class_embeds=3)).eval()
    images = ImageFormat(channels=3, size=(10, 7))
    pipeline = Pipeline(unet, DDPMScheduler(**settings), images)
    export_onnx(pipeline, tmp_path / "model.onnx")
    made = sample(str(tmp_path / "model.onnx"), num_images=5, steps=30, seed=3, class_label=2)
    expected = pipeline(num_images=5, steps=30, seed=3, class_labels=2, output_type="values").images
    assert (made.shape, made.dtype) == ((5, 10, 7, 3), np.uint8)
    # Of values from 0 to 255; rounding may fall on either side of a half.
    assert np.abs(made.astype(int) - np.asarray(expected)).max() <= 1
    assert np.mean(made == expected) > 0.99
    assert len(np.unique(made)) > 50


def test_example_is_right_for_the_preset_mnist_too(exported):
    pipeline, path = exported(mnist, "onnx", False)
    made = sample(str(path), num_images=2, steps=10, seed=0)
    expected = np.asarray(pipeline(num_images=2, steps=10, output_type="values").images)
    assert np.abs(made.astype(int) - expected).max() <= 1


def test_network_of_full_size_is_captured_with_all_its_weights():
    """On the meta device: shapes without numbers."""
    settings = preset("cifar10")
    with torch.device("meta"):
        unet = UNet(**settings.unet).eval()
        inputs = torch.empty(2, 3, 32, 32), torch.empty(2)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(unet, inputs, dynamic_shapes=({0: batch}, {0: batch}))
    assert sum(weight.numel() for weight in program.state_dict.values()) == 35_746_307
    (free,) = {str(n) for n in program.range_constraints.values()}
    assert free == "VR[1, int_oo]"


def test_network_itself_is_captured_with_a_free_batch_and_size():
    unet = randomise_(UNet(**SMALL)).eval()
    batch, rows, columns = (torch.export.Dim(name, min=1) for name in ("batch", "rows", "columns"))
    program = torch.export.export(
        unet,
        (torch.randn(2, 3, 8, 8), torch.tensor([1.0, 2.0])),
        dynamic_shapes=({0: batch, 2: 2 * rows, 3: 2 * columns}, {0: batch}),
    )
    for shape in ((1, 3, 4, 10), (40, 3, 8, 8)):
        x, t = torch.randn(shape), torch.rand(shape[0]) * 999
        made = program.module()(x, t).sample
        assert (error_of_each_image(made, unet(x, t).sample) < 1e-5).all()


def test_pipeline_stays_as_it_is(tmp_path):
    pipeline = make(SMALL | {"sample_size": 8})
    pipeline.unet.train()
    before = {name: weight.clone() for name, weight in pipeline.unet.state_dict().items()}
    export_pt2(pipeline, tmp_path / "model.pt2", dtype="float16")
    assert pipeline.unet.training
    for name, weight in pipeline.unet.state_dict().items():
        assert torch.equal(weight, before[name])


@pytest.mark.parametrize("kind", [pytest.param("onnx", marks=pytest.mark.slow), "pt2"])
def test_a_file_that_computes_something_else_does_not_appear(kind, tmp_path, monkeypatch):
    monkeypatch.setitem(check.TOLERANCE, torch.float32, 0.0)
    path = tmp_path / f"model.{kind}"
    path.write_bytes(b"an earlier file")
    with pytest.raises(RuntimeError, match="the exported network differs from the model by"):
        WRITERS[kind](make(SMALL | {"sample_size": 8}), path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"an earlier file"


def test_a_network_beyond_half_precision_is_refused_in_one_line(tmp_path):
    pipeline = make(SMALL | {"sample_size": 8})
    pipeline.unet.conv_out.weight.data *= 1e5
    with pytest.raises(ValueError, match="half precision is too little for it; use float32"):
        export_pt2(pipeline, tmp_path / "model.pt2", dtype="float16")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", onnx_file.PACKAGES)
def test_without_its_packages_onnx_is_refused_with_the_extra(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"package {package}: pip install 'ddpm_sa\[export\]'"):
        export_onnx(make(SMALL | {"sample_size": 8}), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_into_one_onnx_file_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(onnx_file, "MOST_BYTES", 100)
    with pytest.raises(ValueError, match="2 GiB; use dtype float16 or format pt2"):
        export_onnx(make(SMALL | {"sample_size": 8}), tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("config", "dynamic", "message"),
    [
        ({"sample_size": 2}, True, "dynamic_size needs images of 4 x 4 or more"),
        ({"sample_size": 8, "class_embed_type": "timestep"}, False, "class_embed_type='timestep'"),
    ],
    ids=["small", "classes"],
)
def test_what_is_not_exported_is_refused_in_one_line(config, dynamic, message):
    pipeline = make(SMALL | config)
    with pytest.raises(ValueError, match=message) as refusal:
        capture(pipeline, torch.float32, dynamic)
    assert "\n" not in str(refusal.value)
