"""Networks that UNet saves are those that UNet2DModel saves, and either opens the other's."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ddpm_sa.errors import UserError
from ddpm_sa.models.unet import UNet
from tests.models.test_published_configs import configurations
from tests.support.reference import SMALL, assert_same_weights, randomise_

WEIGHTS = "diffusion_pytorch_model.safetensors"


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@settings(max_examples=60)
@given(
    config=configurations(),
    ours_saves=st.booleans(),
    saving=st.fixed_dictionaries(
        {
            "variant": st.sampled_from([None, "fp16"]),
            "max_shard_size": st.sampled_from(["10GB", "100KB", 300_000]),
            "safe_serialization": st.booleans(),
        }
    ),
    low_cpu_mem_usage=st.booleans(),
    torch_dtype=st.sampled_from([None, torch.float64]),
)
def test_weights_are_the_same_bits_after_saving_and_loading(
    config: dict[str, Any],
    ours_saves: bool,
    saving: dict[str, Any],
    low_cpu_mem_usage: bool,
    torch_dtype: torch.dtype | None,
) -> None:
    saver, loader = (UNet, UNet2DModel) if ours_saves else (UNet2DModel, UNet)
    try:
        UNet(**config)
    except UserError:
        assume(False)
    network = randomise_(saver(**config))
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder, **saving)
        loaded = loader.from_pretrained(
            folder,
            variant=saving["variant"],
            use_safetensors=None if saving["safe_serialization"] else False,
            low_cpu_mem_usage=low_cpu_mem_usage,
            torch_dtype=torch_dtype,
        )
    assert_same_weights(loaded, network.to(torch_dtype or torch.float32))
    assert not loaded.training
    for name in config:
        assert loaded.config[name] == network.config[name]


@pytest.mark.parametrize(
    "saving",
    [
        {},
        {"variant": "ema"},
        {"max_shard_size": "20KB"},
        {"variant": "fp16", "max_shard_size": "20KB"},
        {"is_main_process": False},
        {"safe_serialization": True, "push_to_hub": False},
    ],
    ids=str,
)
def test_saving_writes_the_files_of_diffusers_byte_for_byte(
    saving: dict[str, Any], tmp_path: Path
) -> None:
    theirs = randomise_(UNet2DModel(**SMALL, sample_size=(8, 16)))
    ours = UNet(**SMALL, sample_size=(8, 16))
    ours.load_state_dict(theirs.state_dict())
    for network, name in ((ours, "ours"), (theirs, "theirs")):
        network.save_pretrained(tmp_path / name, **saving)
    assert files_of(tmp_path / "ours") == files_of(tmp_path / "theirs")


def test_shards_of_an_earlier_save_are_removed(tmp_path: Path) -> None:
    unet = randomise_(UNet(**SMALL))
    unet.save_pretrained(tmp_path, max_shard_size="20KB")
    unet.save_pretrained(tmp_path, max_shard_size="60KB")
    index = json.loads((tmp_path / f"{WEIGHTS}.index.json").read_text())
    shards = {path.name for path in tmp_path.glob("*.safetensors")}
    assert set(index["weight_map"].values()) == shards
    assert_same_weights(UNet.from_pretrained(tmp_path), unet)


def test_what_diffusers_lacks_is_saved_as_ours(tmp_path: Path) -> None:
    for name, change in {
        "sagan": {"attention_kind": "sagan"},
        "heads": {"num_attention_heads": 2},
    }.items():
        unet = randomise_(UNet(**{**SMALL, **change}))
        unet.save_pretrained(tmp_path / name)
        assert json.loads((tmp_path / name / "config.json").read_text())["_class_name"] == "UNet"
        loaded = UNet.from_pretrained(tmp_path / name)
        assert_same_weights(loaded, unet)
        assert change.items() <= loaded.config.items()


@pytest.mark.parametrize("kind", ["pixel", "sagan"])
def test_a_pipeline_of_diffusers_saves_and_opens_our_network(kind: str, tmp_path: Path) -> None:
    unet = randomise_(UNet(**{**SMALL, "sample_size": 8, "attention_kind": kind}))
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path, variant="fp16")
    opened = DDPMPipeline.from_pretrained(tmp_path, variant="fp16")
    assert type(opened.unet) is UNet
    assert_same_weights(opened.unet, unet)


def test_an_average_is_saved_and_opened_by_diffusers_training_tools(tmp_path: Path) -> None:
    unet = randomise_(UNet(**SMALL))
    average = EMAModel(unet.parameters(), model_cls=UNet, model_config=unet.config, decay=0.75)
    average.save_pretrained(str(tmp_path))
    with pytest.warns(FutureWarning, match="from_config"):  # EMAModel's own
        opened = EMAModel.from_pretrained(str(tmp_path), UNet)
    assert opened.decay == 0.75
    for weight, expected in zip(opened.shadow_params, unet.parameters(), strict=True):
        assert torch.equal(weight, expected)
    assert_same_weights(UNet.from_pretrained(tmp_path).to_diffusers(), unet)
