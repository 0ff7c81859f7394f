import json
import pickle
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file

from ddpm_sa import NoiseSchedule, Pipeline, UNet
from ddpm_sa.checkpoints import from_pesser
from ddpm_sa.checkpoints.reading import read_weights
from ddpm_sa.model_folder import load_scheduler
from sampling.convert import main
from tests.support.openai_network import UNetModel
from tests.support.reference import SMALL, Fixture, error_of_each_image, randomise_

LEGACY, NEW = "guided_diffusion_unet_legacy_order", "guided_diffusion_unet_new_order"
# Each recorded network, the file that its weights lie in, and the flags that go with it.
FIXTURES: dict[str, tuple[str, list[Any]]] = {
    "ddpm_tf_unet": (".npz", ["--sigma_small", "true"]),
    "pesser_unet": (".ckpt", []),
    "improved_diffusion_unet": (".safetensors", ["--num_heads", 4, "--noise_schedule", "cosine"]),
    LEGACY: (".pt", ["--num_head_channels", 16]),
    NEW: (".npz", ["--num_head_channels", 16, "--use_new_attention_order", "true"]),
}
OPEN_WITHOUT_US = """
import json, sys
sys.modules["ddpm_sa"] = None
import torch
from diffusers import DDPMPipeline, UNet2DModel
from safetensors.torch import load_file

for folder in sys.argv[1:]:
    pipeline = DDPMPipeline.from_pretrained(folder)
    assert type(pipeline.unet) is UNet2DModel
    facts = load_file(f"{folder}.facts")
    with torch.no_grad():
        out = pipeline.unet(facts["x"], facts["t"]).sample
    assert out.shape == facts["y"].shape and facts["y"].isfinite().all()
    error = (out - facts["y"]).abs().flatten(1).amax(1) / facts["y"].abs().flatten(1).amax(1)
    assert (error < 1e-4).all(), error
    images = pipeline(batch_size=2, num_inference_steps=2, output_type="np").images
    assert images.shape == (2, 16, 16, 3)
print("opened", len(sys.argv) - 1)
"""


def write(path: Path, weights: dict[str, Any]) -> Path:
    """The weights in a file of the kind that its suffix says."""
    tensors = {name: torch.as_tensor(np.array(array)) for name, array in weights.items()}
    if path.suffix == ".npz":
        np.savez(path, **weights)
    elif path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


@pytest.fixture
def convert(run_main):
    """Run the program: words -> (exit code, stdout, stderr)."""
    return partial(run_main, main)


def converted(convert, folder: Path, name: str, *more: Any) -> Path:
    suffix, flags = FIXTURES[name]
    source = write(folder / f"weights{suffix}", Fixture(name).weights())
    out = folder / name
    words = [source, "--image_size", 16, *flags, *more, "--output_dir", out]
    code, said, error = convert(*words)
    assert code == 0, error
    assert said.startswith(f"{out}: ")
    return out


def test_diffusers_alone_opens_every_kind_and_gives_the_originals_output(convert, tmp_path):
    for name in FIXTURES:
        out, original = converted(convert, tmp_path, name), Fixture(name)
        facts = {"x": original.image("in/x"), "t": original["in/t"], "y": original.image("out/y")}
        save_file({key: fact.contiguous() for key, fact in facts.items()}, f"{out}.facts")
        assert {path.name for path in out.iterdir()} == {
            *("model_index.json", "unet", "scheduler", "images.json", "README.md")
        }
    done = subprocess.run(
        [sys.executable, "-c", OPEN_WITHOUT_US, *(str(tmp_path / name) for name in FIXTURES)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == f"opened {len(FIXTURES)}"


def test_the_folder_says_what_the_images_and_the_weights_are(convert, tmp_path):
    out = converted(convert, tmp_path, NEW)
    pipeline = Pipeline.from_pretrained(out)
    assert (pipeline.image_format.channels, pipeline.image_format.size) == (3, (16, 16))
    card = (out / "README.md").read_text()
    assert "`weights.npz` (sha256 " in card
    assert "num_head_channels=16, use_new_attention_order=True" in card
    config = json.loads((out / "unet" / "config.json").read_text())
    assert config["_class_name"] == "UNet2DModel"
    assert config["sample_size"] == 16


def test_a_program_of_its_own_takes_the_file_as_its_first_word(tmp_path):
    source = write(tmp_path / "a.npz", Fixture("pesser_unet").weights())
    program = Path(__file__).parents[2] / "sampling" / "convert.py"
    words = [sys.executable, program, source, "--image_size", "16", "--output_dir", "out"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out" / "model_index.json").is_file()


# The schedule

SCHEDULES = {
    "the paper's": ("pesser_unet", [], NoiseSchedule.linear().alphas_cumprod),
    "linear": (LEGACY, [], NoiseSchedule.linear().alphas_cumprod),
    "linear of 4000": (
        LEGACY,
        ["--diffusion_steps", 4000, "--rescale_timesteps", "false"],
        "linear_4000",
    ),
    "cosine of 50": (
        NEW,
        ["--diffusion_steps", 50, "--rescale_timesteps", "false", "--noise_schedule", "cosine"],
        "cosine_50",
    ),
    "every fourth of a cosine of 4000": (
        "improved_diffusion_unet",
        ["--diffusion_steps", 4000, "--rescale_timesteps", "true"],
        "cosine_4000",
    ),
}


@pytest.mark.parametrize("case", SCHEDULES)
def test_the_schedule_is_that_of_the_training(case, convert, tmp_path):
    name, flags, expected = SCHEDULES[case]
    if isinstance(expected, str):
        betas = Fixture("improved_diffusion_gaussian")[f"out/get_named_beta_schedule/{expected}"]
        expected = (1 - betas).cumprod(0)
    if "every fourth" in case:
        # The network is given t / 4: these are the whole numbers among them.
        expected = expected[::4]
    scheduler = load_scheduler(converted(convert, tmp_path, name, *flags))
    found = NoiseSchedule.from_scheduler(scheduler).alphas_cumprod
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "flags", "variance", "predicts"),
    [
        ("improved_diffusion_unet", [], "learned_range", "epsilon"),
        (LEGACY, ["--predict_xstart", "true"], "learned_range", "sample"),
        ("ddpm_tf_unet", [], "fixed_small", "epsilon"),
        ("pesser_unet", [], "fixed_large", "epsilon"),
    ],
)
def test_the_scheduler_says_what_is_predicted(name, flags, variance, predicts, convert, tmp_path):
    scheduler = load_scheduler(converted(convert, tmp_path, name, *flags))
    assert scheduler.config.variance_type == variance
    assert scheduler.config.prediction_type == predicts
    assert scheduler.config.clip_sample


# Other networks

IMPROVED = ["--num_heads", 4]


def test_classes_and_heads_of_several_widths_are_carried(convert, tmp_path):
    heads = {32: 4, 64: 4, 96: 4}
    written = UNetModel(channel_mult=(1, 2, 3), attended=(0, 1, 2), heads=heads, num_classes=5)
    weights = written.weights()
    source = write(tmp_path / "a.pt", weights)
    words = [source, "--image_size", 16, *IMPROVED, "--output_dir", tmp_path / "out"]
    code, said, error = convert(*words)
    assert code == 0, error
    assert "only ddpm_sa can open it" in said
    unet = Pipeline.from_pretrained(tmp_path / "out").unet
    x, t, y = torch.randn(2, 3, 16, 16), torch.tensor([3, 741]), torch.tensor([4, 1])
    with torch.no_grad():
        found, expected = unet(x, t, y).sample, written(weights, x, t, y)
    assert (error_of_each_image(found, expected) < 1e-4).all()


@pytest.mark.parametrize("layout", ["in the root", "in unet/"])
def test_weights_of_diffusers_go_by_the_files_beside_them(layout, convert, tmp_path):
    theirs = randomise_(UNet2DModel(**SMALL, sample_size=8))
    DDPMPipeline(theirs, DDPMScheduler(beta_end=0.03)).save_pretrained(tmp_path / "model")
    here = tmp_path / "model" / "unet"
    if layout == "in the root":
        here = tmp_path / "root"
        here.mkdir()
        shutil.copy(tmp_path / "model" / "unet" / "config.json", here)
        shutil.copy(tmp_path / "model" / "scheduler" / "scheduler_config.json", here)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = theirs.state_dict()
    for new, former in old.items():
        weights = {name.replace(f".{new}.", f".{former}."): w for name, w in weights.items()}
    torch.save(weights, here / "diffusion_pytorch_model.bin")
    source, out = here / "diffusion_pytorch_model.bin", tmp_path / "out"
    code, _, error = convert(source, "--output_dir", out)
    assert code == 0, error
    again = DDPMPipeline.from_pretrained(out)
    assert again.scheduler.config.beta_end == 0.03
    for name, weight in theirs.state_dict().items():
        assert torch.equal(again.unet.state_dict()[name], weight), name


# What training programs save


def pesser_weights() -> dict[str, torch.Tensor]:
    return {n: torch.from_numpy(a) for n, a in Fixture("pesser_unet").weights().items()}


def prefixed(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": weight for name, weight in weights.items()}


def saved(found: Path) -> dict[str, torch.Tensor]:
    return load_file(found / "unet" / "diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The converted weights of the bare state dict, which every other way to save must give."""
    unet = from_pesser(pesser_weights(), 16)
    return dict(unet.state_dict())


@pytest.mark.parametrize(
    "prefix",
    [
        *("_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module._orig_mod."),
        *("model.", "net.", "model._orig_mod.", "module.ema_model.", "_fsdp_wrapped_module.unet."),
    ],
)
@pytest.mark.parametrize("nesting", [[], ["state_dict"], ["model"], ["ema"], ["a", "module", "b"]])
def test_wrapped_and_nested_weights_are_found(prefix, nesting, bare, tmp_path):
    content: Any = prefixed(pesser_weights(), prefix)
    for name in reversed(nesting):
        content = {name: content, "step": 3}
    torch.save(content, tmp_path / "a.pt")
    entry = read_weights(tmp_path / "a.pt")
    assert entry.kind == "pesser"
    assert not entry.left_out
    found = from_pesser(entry.weights, 16).state_dict()
    assert all(found[name].equal(weight) for name, weight in bare.items())


def test_wrappers_within_the_names_are_removed(bare, tmp_path):
    """Blocks that were compiled, or wrapped for checkpointing or FSDP, one by one."""
    inner = {"down.0.": "down.0._orig_mod.", "mid.": "mid._checkpoint_wrapped_module.module."}
    weights = pesser_weights()
    for plain, wrapped in inner.items():
        weights = {name.replace(plain, wrapped): weight for name, weight in weights.items()}
    assert any("_orig_mod" in name for name in weights)
    torch.save(weights, tmp_path / "a.pt")
    found = from_pesser(read_weights(tmp_path / "a.pt").weights, 16).state_dict()
    assert all(found[name].equal(weight) for name, weight in bare.items())


@pytest.mark.parametrize("outer", ["ema", "state_dict", "model", "model_state_dict", "ema_model"])
def test_the_only_network_of_a_checkpoint_is_taken_and_said(outer, bare, convert, tmp_path):
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]}
    content = {"epoch": 3, outer: prefixed(pesser_weights(), "module."), "optimizer": optimizer}
    torch.save(content, tmp_path / "a.ckpt")
    out = tmp_path / "out"
    code, said, error = convert(tmp_path / "a.ckpt", "--image_size", 16, "--output_dir", out)
    assert code == 0, error
    assert f"taken from the file: {outer}.*, without this prefix" in said
    assert "left out of the file: 1 other tensors, optimizer.state.0.exp_avg first" in said
    assert all(saved(out)[name].equal(weight) for name, weight in bare.items())


@pytest.mark.parametrize("layout", ["nested", "prefixes"])
def test_of_several_networks_one_is_chosen_by_its_entry(layout, bare, convert, tmp_path):
    raw = {name: weight + 1 for name, weight in pesser_weights().items()}
    content: Any = {"model": raw, "ema": pesser_weights(), "step": 3}
    if layout == "prefixes":  # as Lightning modules and some averages save theirs
        both = prefixed(raw, "model.") | prefixed(pesser_weights(), "ema.")
        content = {"state_dict": both | {"betas": torch.zeros(3)}, "hyper_parameters": {"lr": 1}}
    torch.save(content, tmp_path / "a.pt")
    out = tmp_path / "out"
    words = [tmp_path / "a.pt", "--image_size", 16, "--output_dir", out]
    place = "" if layout == "nested" else "state_dict."
    code, _, error = convert(*words)
    assert code == 2
    assert f"the weights of 2 networks: {place}ema, {place}model; choose one by --entry" in error
    assert error.count("\n") == 1
    assert not out.exists()
    code, _, error = convert(*words, "--entry", "average")
    assert code == 2
    assert f"no entry 'average'; --entry may be {place}ema, {place}model" in error
    assert convert(*words, "--entry", f"{place}ema")[0] == 0
    assert all(saved(out)[name].equal(weight) for name, weight in bare.items())


def test_an_entry_without_a_prefix_is_given_as_nothing(bare, tmp_path):
    raw = {name: weight + 1 for name, weight in pesser_weights().items()}
    torch.save(pesser_weights() | prefixed(raw, "raw."), tmp_path / "a.pt")
    with pytest.raises(ValueError, match="2 networks: '', raw; choose one by --entry"):
        read_weights(tmp_path / "a.pt")
    found = from_pesser(read_weights(tmp_path / "a.pt", "").weights, 16).state_dict()
    assert all(found[name].equal(weight) for name, weight in bare.items())


def test_a_name_that_is_there_twice_is_refused(tmp_path):
    torch.save(pesser_weights() | prefixed(pesser_weights(), "_orig_mod."), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"holds .* twice, as _orig_mod\..* too"):
        read_weights(tmp_path / "a.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("network", [UNet, UNet2DModel], ids=["ours", "diffusers"])
def test_a_bare_state_dict_goes_by_the_config_that_is_named(network, suffix, convert, tmp_path):
    model = randomise_(network(**SMALL, sample_size=8))
    source = write(tmp_path / f"weights{suffix}", prefixed(model.state_dict(), "_orig_mod."))
    (tmp_path / "net.json").write_text(json.dumps(dict(model.config)))
    out = tmp_path / "out"
    words = [source, "--output_dir", out]
    code, _, error = convert(*words)
    assert code == 2
    assert "give it by --network_config" in error
    words += ["--network_config", tmp_path / "net.json"]
    code, _, error = convert(*words)
    assert code == 2
    assert "describe it by --noise_schedule" in error
    process = ["--noise_schedule", "cosine", "--predict_xstart", "true"]
    code, _, error = convert(*words, *process)
    assert code == 0, error
    pipeline = Pipeline.from_pretrained(out)
    assert pipeline.scheduler.config.beta_schedule == "squaredcos_cap_v2"
    assert pipeline.scheduler.config.prediction_type == "sample"
    for name, weight in model.state_dict().items():
        assert pipeline.unet.state_dict()[name].equal(weight), name


def test_a_scheduler_config_beside_the_weights_rules(convert, tmp_path):
    Pipeline(UNet(**SMALL, sample_size=8), DDPMScheduler()).save_pretrained(tmp_path / "model")
    source = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    words = [source, "--output_dir", tmp_path / "out", "--noise_schedule", "cosine"]
    code, _, error = convert(*words)
    assert code == 2
    assert "noise_schedule does not apply" in error


# Mistakes


class Harm:
    def __reduce__(self):
        return (Path.touch, (Path("touched"),))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Files of weights, good and bad."""
    folder = tmp_path_factory.mktemp("place")
    weights = Fixture("improved_diffusion_unet").weights()
    for suffix in (".npz", ".pt", ".safetensors"):
        good = write(folder / f"good{suffix}", weights)
        (folder / f"cut{suffix}").write_bytes(good.read_bytes()[:5000])
        (folder / f"empty{suffix}").write_bytes(b"")
        (folder / f"text{suffix}").write_text("hello")
    (folder / "harm.pt").write_bytes(pickle.dumps(Harm()))
    torch.save(torch.nn.Linear(2, 2), folder / "whole.pt")
    torch.save([torch.zeros(2)], folder / "list.pt")
    torch.save({"time_embed.0.weight": 3}, folder / "number.pt")
    torch.save({}, folder / "nothing.pt")
    np.savez(folder / "objects.npz", a=np.array([None]))
    np.savez(folder / "words.npz", a=np.array(["a"]))
    write(folder / "unknown.npz", {"encoder.weight": np.zeros(3)})
    write(folder / "lacks.pt", {n: a for n, a in weights.items() if n != "out.0.bias"})
    write(folder / "alone.npz", {"down_blocks.0.resnets.0.norm1.weight": np.zeros(3)})
    write(folder / "paper.npz", Fixture("pesser_unet").weights())
    doubled = dict(Fixture("pesser_unet").weights())
    for name in ("conv_out.weight", "conv_out.bias"):
        doubled[name] = np.concatenate([doubled[name]] * 2)
    write(folder / "doubled.npz", doubled)
    wide = np.concatenate([weights["input_blocks.0.0.weight"]] * 2, axis=1)
    write(folder / "larger.npz", {**weights, "input_blocks.0.0.weight": wide})
    (folder / "good.txt").write_text("weights")
    (folder / "full").mkdir()
    (folder / "full" / "thesis.tex").write_text("years of work")
    return folder


SIZE = ["--image_size", 16]
RESCALED = ["--rescale_timesteps", "true"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.pt"], "nowhere.pt is not a file"),
        (["good.txt"], "has an unknown suffix; known are .pt, .pth"),
        (["harm.pt"], "harm.pt is damaged, or contains other objects than weights"),
        (["whole.pt"], "whole.pt is damaged, or contains other objects than weights"),
        (["text.pt"], "text.pt is damaged, or contains other objects than weights"),
        (["cut.pt"], "cut.pt cannot be read"),
        (["empty.pt"], "empty.pt is damaged, or contains other objects than weights"),
        (["cut.npz"], "cut.npz cannot be read"),
        (["empty.npz"], "empty.npz cannot be read"),
        (["text.npz"], "text.npz cannot be read"),
        (["cut.safetensors"], "cut.safetensors cannot be read"),
        (["empty.safetensors"], "empty.safetensors cannot be read"),
        (["text.safetensors"], "text.safetensors cannot be read"),
        (["objects.npz"], "objects.npz cannot be read"),
        (["words.npz"], "holds ndarray under 'a', not weights alone"),
        (["list.pt"], "holds list, not weights by name"),
        (["nothing.pt"], "holds dict, not weights by name"),
        (["number.pt"], "holds int under 'time_embed.0.weight'"),
        (["good.pt", "--entry", "ema"], "has no entry 'ema'"),
        (["unknown.npz"], "'encoder.weight' and the other names match no known kind"),
        (["lacks.pt", *SIZE, *IMPROVED], "out.0.bias is missing"),
        (["good.pt", *IMPROVED], "image_size must be given"),
        (["good.pt", *SIZE], "num_heads or num_head_channels must be given"),
        (["good.pt", "--image_size", 0, *IMPROVED], "image_size=0"),
        (["good.pt", "--image_size", 15, *IMPROVED], "image_size=15 cannot be halved"),
        (["good.pt", *SIZE, *IMPROVED, "--kind", "pesser"], "num_heads does not apply"),
        (["good.pt", *SIZE, "--kind", "pesser"], "down.0.* is missing"),
        (["good.pt", *SIZE, *IMPROVED, "--kind", "torch"], "kind"),
        (["good.pt", *SIZE, *IMPROVED, "--diffusion_steps", 4000], "needs rescale_timesteps too"),
        (["good.pt", *SIZE, "--diffusion_steps", 100, *RESCALED], "a multiple of 1000"),
        (["good.pt", *SIZE, "--diffusion_steps", 0], "diffusion_steps=0"),
        (["paper.npz", *SIZE, "--noise_schedule", "cosine"], "noise_schedule does not apply"),
        (["doubled.npz", *SIZE], "takes 3 channels and gives 6"),
        (["larger.npz", *SIZE, *IMPROVED], "is for super-resolution"),
        (["alone.npz"], "need their config.json, and"),
        (["good.pt", *SIZE, *IMPROVED, "--output_dir", "full"], "is not an empty folder"),
        (["good.pt", *SIZE, *IMPROVED, "--output_dir", "good.txt"], "is not an empty folder"),
        (["good.pt", *SIZE, *IMPROVED, "--output_dir", "good.txt/out"], "good.txt is a file"),
        (["--image_size", 16], "source"),
    ],
)
def test_mistakes_end_in_one_line_and_leave_nothing(words, message, convert, place, monkeypatch):
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    if "--output_dir" not in words:
        words = [*words, "--output_dir", "out"]
    code, said, error = convert(*words)
    assert (code, said) == (2, "")
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert sorted(place.rglob("*")) == before
