import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel

from ddpm_sa import Pipeline, UNet
from ddpm_sa.samplers.feature_cache import DeepReuse
from tests.support.reference import SMALL, randomise_

THREE = SMALL | {
    "sample_size": 8,
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}


def make(**config):
    network = randomise_(UNet(**THREE | config))
    network.conv_out.weight.data *= 0.3
    pipeline = Pipeline(network, DDPMScheduler(prediction_type="v_prediction"))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def images(pipeline, **arguments):
    return pipeline(**{"num_images": 2, "steps": 12, "output_type": "pt"} | arguments).images


@pytest.mark.parametrize("config", [{}, {"center_input_sample": True}, {"num_class_embeds": 2}])
def test_an_interval_of_1_is_no_reuse_bit_for_bit(config):
    pipeline = make(**config)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 500])
    labels = torch.tensor([0, 1]) if "num_class_embeds" in config else None
    with torch.no_grad():
        whole = pipeline.unet(x, t, labels).sample
        reuse = DeepReuse(pipeline.unet, 1)
        assert all(torch.equal(reuse(x, t, labels).sample, whole) for _ in range(3))
        # The same question again needs nothing but what was kept.
        reuse = DeepReuse(pipeline.unet, 3)
        for _ in range(5):
            assert torch.equal(reuse(x, t, labels).sample, whole)
    assert torch.equal(images(pipeline, cache_interval=1), images(pipeline))


def test_the_deep_part_runs_every_nth_time():
    pipeline, runs = make(), []
    pipeline.unet.mid_block.register_forward_hook(lambda *_: runs.append(1))
    images(pipeline, steps=10, cache_interval=4, batch_size=1)
    assert len(runs) == 2 * 3  # for each batch the evaluations 0, 4 and 8
    assert not pipeline.unet.up_blocks[-1]._forward_pre_hooks


def test_images_differ_less_the_less_is_reused_and_not_by_their_batch():
    pipeline = make()
    exact = images(pipeline, steps=50)
    far = [
        (images(pipeline, steps=50, cache_interval=n) - exact).square().mean() for n in (2, 5, 25)
    ]
    assert 0 < far[0] < far[1] < far[2]
    alone = images(pipeline, steps=50, cache_interval=5, indices=[1])
    both = images(pipeline, steps=50, cache_interval=5)
    torch.testing.assert_close(alone[0], both[1], atol=1e-4, rtol=0)


def test_guidance_in_an_interval_goes_with_reuse():
    pipeline = make()
    guide = pipeline.guidance("pag", 1.0, interval=(300, 700))
    assert images(pipeline, cache_interval=3, guide=guide).isfinite().all()


@pytest.mark.parametrize(
    ("network", "interval", "message"),
    [
        (UNet(**THREE), 0, "cache_interval=0 must be at least 1"),
        (UNet2DModel(**THREE), 2, "needs a ddpm_sa.UNet, not a UNet2DModel"),
        (
            UNet(
                sample_size=8,
                block_out_channels=(8,),
                norm_num_groups=4,
                down_block_types=("DownBlock2D",),
                up_block_types=("UpBlock2D",),
            ),
            2,
            "two levels",
        ),
    ],
)
def test_reuse_that_cannot_be_is_refused_in_words(network, interval, message):
    with pytest.raises(ValueError, match=message):
        Pipeline(network, DDPMScheduler())(1, steps=2, cache_interval=interval)


def test_reuse_and_sag_do_not_go_together():
    pipeline = make()
    with pytest.raises(ValueError, match="'sag' evaluates two different images"):
        images(pipeline, cache_interval=2, guide=pipeline.guidance("sag"))
