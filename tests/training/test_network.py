import numpy as np
import pytest
import torch

from ddpm_sa.data.dataset import Images
from ddpm_sa.image_format import ImageFormat
from training.config import ModelConfig
from training.network import build_network, memory_format
from training.reporting.startup import attention_places

TINY = ModelConfig(preset="tiny")


def images(size=(16, 16), channels=3, labels=("a", "b")) -> Images:
    return Images(
        length=1,
        format=ImageFormat(channels=channels, size=size, labels=labels),
        read=np.zeros((1, *size, channels), np.uint8).__getitem__,
    )


def test_every_initial_weight_is_a_function_of_the_seed_alone():
    torch.manual_seed(1)
    first = build_network(TINY, images(), 0).state_dict()
    again = build_network(TINY, images(), 0).state_dict()
    other = build_network(TINY, images(), 1).state_dict()
    for name, weight in first.items():
        assert weight.equal(again[name]), name
        drawn = weight.ndim > 1  # the rest begins as zeros and ones
        assert weight.equal(other[name]) != drawn, name


def test_network_fits_images_that_are_not_square_or_cannot_be_halved():
    config = ModelConfig(preset="tiny", attention_resolutions=[23])
    network = build_network(config, images(size=(45, 61), channels=5), 0)
    assert network.config["sample_size"] == [46, 62]
    x = torch.randn(1, 5, 46, 62)
    assert network(x, 3, torch.tensor([1])).sample.shape == x.shape


def test_attention_is_found_by_its_height():
    config = ModelConfig(preset="tiny", attention_resolutions=[23])
    network = build_network(config, images(size=(45, 61)), 0)
    assert list(attention_places(network)) == ["down 23x31", "mid 23x31", "up 23x31"]


def test_a_network_without_attention_has_no_places():
    unet = {"add_attention": False}
    config = ModelConfig(preset="tiny", attention_resolutions=[], unet=unet)
    assert attention_places(build_network(config, images(), 0)) == {}


CPU, META = torch.device("cpu"), torch.device("meta")


def test_a_network_is_in_channels_last_where_its_kernels_keep_it(monkeypatch):
    """The meta device stands for an accelerator whose GroupNorm returns contiguous images."""
    assert memory_format(META, compiled=False) == torch.contiguous_format
    monkeypatch.setattr("training.network.keeps_channels_last", lambda device: True)
    assert memory_format(META, compiled=False) == torch.channels_last
    assert memory_format(CPU, compiled=False) == torch.contiguous_format  # slower there


@pytest.mark.parametrize("device", [CPU, META])
def test_a_compiled_network_is_in_channels_last(device):
    assert memory_format(device, compiled=True) == torch.channels_last
