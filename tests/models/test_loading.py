import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddpm_sa.models.unet import UNet
from tests.support.reference import SMALL, error_of_each_image, randomise_

WEIGHTS = "diffusion_pytorch_model.safetensors"
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
T = torch.tensor([3, 741])


def saved_by_diffusers(folder: Path, **changes: Any) -> UNet2DModel:
    model = UNet2DModel(**{**SMALL, **changes})
    randomise_(model)
    model.save_pretrained(folder)
    return model.eval()


def assert_same_network(ours: UNet, theirs: UNet2DModel, **arguments: Tensor) -> None:
    weights = theirs.state_dict()
    assert list(ours.state_dict()) == list(weights)
    for name, weight in ours.state_dict().items():
        assert torch.equal(weight, weights[name]), name
    with torch.no_grad():
        out, expected = (network(X, T, **arguments).sample for network in (ours, theirs))
    assert (error_of_each_image(out, expected) < 1e-5).all()


# Folders that diffusers saved


@pytest.mark.parametrize("place", ["unet", ""], ids=["in unet/", "at the root"])
def test_a_folder_of_diffusers_opens(tmp_path: Path, place: str) -> None:
    theirs = saved_by_diffusers(tmp_path / place)
    ours = UNet.from_pretrained(tmp_path)
    assert not ours.training
    assert_same_network(ours, theirs)


def test_subfolder_names_another_place(tmp_path: Path) -> None:
    theirs = saved_by_diffusers(tmp_path / "ema" / "network")
    assert_same_network(UNet.from_pretrained(str(tmp_path / "ema"), "network"), theirs)


def test_a_class_conditional_folder_opens(tmp_path: Path) -> None:
    theirs = saved_by_diffusers(tmp_path / "unet", num_class_embeds=7)
    ours = UNet.from_pretrained(tmp_path)
    assert ours.config["num_class_embeds"] == 7
    assert_same_network(ours, theirs, class_labels=torch.tensor([6, 0]))


def test_a_folder_in_shards_opens(tmp_path: Path) -> None:
    theirs = saved_by_diffusers(tmp_path / "whole")
    theirs.save_pretrained(tmp_path / "unet", max_shard_size="20KB")
    assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 1
    assert_same_network(UNet.from_pretrained(tmp_path), theirs)


def test_the_average_that_diffusers_training_saves_opens(tmp_path: Path) -> None:
    """train_unconditional.py has its checkpoints' unet_ema/ written by EMAModel."""
    theirs = UNet2DModel(**SMALL)
    randomise_(theirs)
    average = EMAModel(theirs.parameters(), model_cls=UNet2DModel, model_config=theirs.config)
    average.save_pretrained(tmp_path / "unet_ema")
    assert_same_network(UNet.from_pretrained(tmp_path, "unet_ema"), theirs.eval())


def test_a_variant_opens_by_its_name(tmp_path: Path) -> None:
    theirs = UNet2DModel(**SMALL)
    randomise_(theirs)
    theirs.save_pretrained(tmp_path / "unet", variant="ema")
    assert_same_network(UNet.from_pretrained(tmp_path, variant="ema"), theirs.eval())


def test_loading_draws_no_random_numbers(tmp_path: Path) -> None:
    saved_by_diffusers(tmp_path)
    before = torch.get_rng_state()
    UNet.from_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_old_attention_names_open_as_diffusers_opens_them(tmp_path: Path) -> None:
    """google/ddpm-cifar10-32 and its kin call them query, key, value and proj_attn."""
    theirs = saved_by_diffusers(tmp_path)
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def old(name: str) -> str:
        for new, former in names.items():
            name = name.replace(f".{new}.", f".{former}.")
        return name

    weights = {old(name): weight for name, weight in load_file(tmp_path / WEIGHTS).items()}
    assert sum(".proj_attn." in name for name in weights) == 8
    save_file(weights, tmp_path / WEIGHTS, metadata={"format": "pt"})
    assert_same_network(UNet.from_pretrained(tmp_path), theirs)
    assert_same_network(UNet.from_pretrained(tmp_path), UNet2DModel.from_pretrained(tmp_path))


def test_torch_dtype_casts_the_weights(tmp_path: Path) -> None:
    saved_by_diffusers(tmp_path)
    ours = UNet.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert {p.dtype for p in ours.parameters()} == {torch.bfloat16}


# Back to diffusers


@pytest.mark.parametrize("training", [True, False])
def test_to_diffusers_shares_every_tensor_and_computes_the_same(training: bool) -> None:
    ours = UNet(**SMALL, num_class_embeds=4)
    randomise_(ours)
    ours.train(training)
    theirs = ours.to_diffusers()
    assert type(theirs) is UNet2DModel
    assert theirs.training == training
    for name, weight in theirs.state_dict().items():
        assert weight.data_ptr() == ours.state_dict()[name].data_ptr(), name
    assert_same_network(ours, theirs, class_labels=torch.tensor([3, 0]))


def test_what_to_diffusers_saves_opens_in_both(tmp_path: Path) -> None:
    ours = UNet(**{**SMALL, "sample_size": 8})
    randomise_(ours)
    ours.to_diffusers().save_pretrained(tmp_path / "unet")
    config = json.loads((tmp_path / "unet" / "config.json").read_text())
    assert config["_class_name"] == "UNet2DModel"
    assert "attention_kind" not in config
    assert_same_network(ours.eval(), UNet2DModel.from_pretrained(tmp_path, subfolder="unet"))
    assert_same_network(UNet.from_pretrained(tmp_path), ours.to_diffusers())


def test_to_diffusers_refuses_sagan_attention() -> None:
    unet = UNet(**{**SMALL, "attention_kind": "sagan"})
    with pytest.raises(ValueError, match=r"no SAGAN attention: this network stays a ddpm_sa\.UNet"):
        unet.to_diffusers()


# Mistakes


def edit_weights(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    weights = load_file(folder / WEIGHTS)
    edit(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def truncate(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing weight": (
        lambda folder: edit_weights(folder, lambda w: w.pop("mid_block.resnets.0.conv1.bias")),
        r"1 missing weights, mid_block\.resnets\.0\.conv1\.bias first",
    ),
    "unexpected weight": (
        lambda folder: edit_weights(folder, lambda w: w.update(extra=torch.zeros(3))),
        r"1 unexpected weights, extra first",
    ),
    "misshapen weight": (
        lambda folder: edit_weights(folder, lambda w: w.update({"conv_in.bias": torch.zeros(9)})),
        r"conv_in\.bias",
    ),
    "damaged file": (truncate, r"."),
    "no file of weights": (
        lambda folder: (folder / WEIGHTS).unlink(),
        r"no file named diffusion_pytorch_model",
    ),
    "damaged config": (lambda folder: (folder / "config.json").write_text("{"), r"config\.json"),
    "unknown argument": (
        lambda folder: edit_config(folder, encoder_hid_dim=3),
        r"config\.json has encoder_hid_dim, which UNet does not know",
    ),
    "unknown block": (
        lambda folder: edit_config(folder, down_block_types=["DownBlock2D", "DownEncoderBlock2D"]),
        r"'DownEncoderBlock2D' is not built here; known are DownBlock2D",
    ),
    "empty folder": (
        lambda folder: (shutil.rmtree(folder), folder.mkdir()),
        r"holds no network: there is no config\.json in it or in its unet/",
    ),
    "missing folder": (shutil.rmtree, "is not a local folder, and no repository"),
    "weights of another network": (
        lambda folder: edit_config(folder, block_out_channels=[8, 2**16]),
        r"config\.json describes a network of 506,\d{3},\d{3},\d{3} parameters, and the files",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), FAULTS.values(), ids=FAULTS)
def test_a_faulty_folder_is_refused_by_its_name_and_fault(
    tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    folder = tmp_path / "model"
    saved_by_diffusers(folder)
    spoil(folder)
    with pytest.raises(ValueError, match=message) as refusal:
        UNet.from_pretrained(folder, local_files_only=True)
    assert str(folder) in str(refusal.value)
