import copy
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import GradientAccumulationPlugin
from torch import nn

from ddpm_sa.data.dataset import Images
from ddpm_sa.image_format import ImageFormat
from training.config import OptimConfig
from training.draws import Draws, Layout
from training.loop import Batch, learning_rate, make_batch, train_steps
from training.objective import make_optimizer

PIXELS = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 1), dtype=np.uint8)
IMAGES = Images(length=10, format=ImageFormat(channels=1, size=(4, 4)), read=PIXELS.__getitem__)
DRAWS = Draws(seed=0, batch_size=8, num_images=10, num_timesteps=100)
OPTIM = OptimConfig(lr=1e-2, warmup_steps=0, grad_clip=0.1)


class Toy(nn.Module):
    """A stand-in for the U-Net, small enough to differentiate by hand."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x):
        return self.conv(x)


def toy_loss(network, batch):
    return (network(batch.x_0 + batch.eps) - batch.eps).square().mean(dim=(1, 2, 3))


def trained(network, steps, micro=None, loss=toy_loss, **options):
    """Train for some steps in this process: every Progress."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    layout = Layout(8, micro_batch_size=micro)
    plugin = GradientAccumulationPlugin(num_steps=layout.accumulation, sync_with_dataloader=False)
    accelerator = Accelerator(cpu=True, gradient_accumulation_plugin=plugin)
    prepared, optimizer = accelerator.prepare(network, make_optimizer(network, OPTIM))
    batches = (make_batch(IMAGES, DRAWS, layout, step) for step in range(steps))
    options = {"lr_at": lambda step: OPTIM.lr, "grad_clip": OPTIM.grad_clip} | options
    return list(train_steps(accelerator, prepared, optimizer, loss, batches, **options))


def whole_batch(step) -> Batch:
    return make_batch(IMAGES, DRAWS, Layout(8), step)


@pytest.mark.parametrize("micro", [8, 4, 2, 1])
def test_steps_are_those_of_plain_torch_on_the_whole_batch(micro):
    network, plain = Toy(), Toy()
    progress = trained(network, 3, micro)
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-2)
    for step in range(3):
        optimizer.zero_grad()
        loss = toy_loss(plain, whole_batch(step).micro_batches[0]).mean()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
        optimizer.step()
        # float32 sums of 8 terms in another order: a few parts in 10^7.
        assert progress[step].loss == pytest.approx(loss.item(), rel=1e-6)
        assert progress[step].grad_norm == pytest.approx(norm.item(), rel=1e-5)
    for one, other in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_progress_counts_updates_and_reports_what_they_used():
    progress = trained(Toy(), 3, lr_at=lambda step: 0.1 * step)
    assert [one.step for one in progress] == [1, 2, 3]
    assert [one.lr for one in progress] == pytest.approx([0.0, 0.1, 0.2])
    assert not any(one.stop for one in progress)
    assert all(one.seconds > 0 for one in progress)


def test_first_update_of_a_warmup_leaves_the_weights():
    network = Toy()
    before = copy.deepcopy(network.state_dict())
    trained(network, 1, lr_at=lambda step: learning_rate(replace(OPTIM, warmup_steps=5), step))
    assert all(before[name].equal(value) for name, value in network.state_dict().items())


def test_learning_rate_is_the_papers():
    config = OptimConfig(lr=2e-4, warmup_steps=5000)
    # run_cifar.py: lr * min(global_step / warmup, 1), global_step from 0.
    rates = [learning_rate(config, step) for step in (0, 1, 2500, 5000, 10**6)]
    assert rates == pytest.approx([0, 4e-8, 1e-4, 2e-4, 2e-4], rel=1e-12)
    assert learning_rate(replace(config, warmup_steps=0), 0) == 2e-4


def test_learning_rate_falls_to_zero_where_asked():
    config = OptimConfig(lr=1.0, warmup_steps=10, decay_steps=30)
    rates = [learning_rate(config, step) for step in (5, 10, 20, 29, 30, 99)]
    assert rates == pytest.approx([0.5 * 1, 1, 0.5, 0.05, 0, 0], rel=1e-12)


def test_request_to_stop_reaches_the_caller_with_the_update_it_came_in():
    asked = iter([False, True, True])
    progress = trained(Toy(), 3, stop_requested=lambda: next(asked))
    assert [one.stop for one in progress] == [False, True, True]


def spoilt_at_step_2(value_of):
    """A loss that is not finite, or has such a gradient, for one image of the second step."""

    def loss(network, batch):
        losses = toy_loss(network, batch)
        spoilt = batch.t == int(DRAWS(1).t[3])
        # torch.where alone would let the spoilt side's gradient into every step.
        return torch.where(spoilt, value_of(losses, network), losses) if spoilt.any() else losses

    return loss


def infinite_gradient(losses, network):
    # sqrt has an infinite slope at 0, where it is itself finite.
    return losses + (network.conv.bias - network.conv.bias.detach()).sqrt()


NOT_FINITE = [
    (lambda losses, network: losses * float("nan"), r"loss of step 2 .*timesteps {t}\)"),
    (lambda losses, network: losses / 0.0, r"loss of step 2 .*timesteps {t}\)"),
    (infinite_gradient, r"gradient of step 2 .*timesteps .*\b{t}\b.*\)"),
]


@pytest.mark.parametrize(("value_of", "message"), NOT_FINITE)
def test_a_value_that_is_not_finite_stops_before_the_weights(value_of, message):
    network, sound = Toy(), Toy()
    trained(sound, 1)
    with pytest.raises(ValueError, match=message.format(t=DRAWS(1).t[3])):
        trained(network, 3, loss=spoilt_at_step_2(value_of))
    assert all(
        one.equal(other)
        for one, other in zip(network.parameters(), sound.parameters(), strict=True)
    )


@pytest.mark.parametrize(("value_of", "message"), NOT_FINITE)
def test_an_update_that_is_not_finite_is_left_out_where_asked(value_of, message):
    network, plain = Toy(), Toy()
    rates = [1e-2, 7e-3, 3e-3]
    progress = trained(
        network, 3, loss=spoilt_at_step_2(value_of), lr_at=rates.__getitem__, on_nonfinite="skip"
    )
    assert [one.skipped is None for one in progress] == [True, False, True]
    assert re.search(message.format(t=DRAWS(1).t[3]), progress[1].skipped)
    assert [one.lr for one in progress] == pytest.approx(rates)
    # Plain torch that never saw the second batch; it too has the third batch's learning rate.
    optimizer = torch.optim.AdamW(plain.parameters(), weight_decay=0, fused=True)
    for step in (0, 2):
        optimizer.param_groups[0]["lr"] = rates[step]
        optimizer.zero_grad()
        toy_loss(plain, whole_batch(step).micro_batches[0]).mean().backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
        optimizer.step()
    for one, other in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_batch_holds_the_images_noise_and_labels_of_its_draw():
    labelled = replace(
        IMAGES,
        format=replace(IMAGES.format, labels=tuple("abcdefghij")),
        labels=np.arange(10),
        label_dropout=True,
    )
    draws = replace(DRAWS, flip=True, label_dropout=0.5)
    batch = make_batch(labelled, draws, Layout(8, processes=2, process=1), 4)
    (micro,) = batch.micro_batches
    mine = draws(4)[4:8]
    for row, (index, flip, drop) in enumerate(
        zip(mine.indices, mine.flips, mine.drops, strict=True)
    ):
        pixels = PIXELS[index, :, ::-1] if flip else PIXELS[index]
        expected = torch.tensor(pixels[:, :, 0].astype(np.float32) / 127.5 - 1)
        torch.testing.assert_close(micro.x_0[row, 0], expected)
        assert micro.condition.class_labels is not None
        assert micro.condition.class_labels[row] == (10 if drop else index)
    assert mine.drops.any()
    assert not mine.drops.all()
    assert micro.eps.equal(draws(4).noise((1, 4, 4))[4:8])
    assert micro.t.tolist() == mine.t.tolist()
