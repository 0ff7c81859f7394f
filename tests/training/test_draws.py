import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.draws import Draws, Layout, seed_dropout, validation_draw


def make_draws(**changes) -> Draws:
    settings = {"seed": 3, "batch_size": 12, "num_images": 50, "num_timesteps": 1000}
    return Draws(**(settings | changes))


@given(num_images=st.integers(1, 40), batch_size=st.integers(1, 60), seed=st.integers(0, 2**40))
def test_every_epoch_shows_each_image_once(num_images, batch_size, seed):
    draws = make_draws(num_images=num_images, batch_size=batch_size, seed=seed)
    steps = -(-3 * num_images // batch_size)
    shown = np.concatenate([draws(step).indices for step in range(steps)])
    for epoch in range(3):
        one = shown[epoch * num_images : (epoch + 1) * num_images]
        assert sorted(one) == list(range(num_images))


def test_epochs_are_permuted_differently():
    draws = make_draws(batch_size=50)
    assert (draws(0).indices != draws(1).indices).any()


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
@pytest.mark.parametrize("micro", [1, 3, None])
def test_slices_of_any_layout_make_up_the_global_draw(processes, micro):
    draws = make_draws(batch_size=36, flip=True, label_dropout=0.3)
    whole = draws(5)
    slices = [
        draws(5)[span]
        for process in range(processes)
        for span in Layout(36, processes, process, micro).spans()
    ]
    assert len(slices) == 36 // (micro or 36 // processes)
    for name in ("positions", "indices", "flips", "t", "drops"):
        parts = np.concatenate([getattr(one, name) for one in slices])
        assert (parts == getattr(whole, name)).all()
    noise = torch.cat([one.noise((1, 2, 2)) for one in slices])
    assert noise.equal(whole.noise((1, 2, 2)))


def test_draw_is_a_function_of_seed_and_step_alone():
    one, again = make_draws(), make_draws()
    for step in (0, 1, 7):
        one(step)
    assert (one(2).t == again(2).t).all()
    assert one(2).noise((4,)).equal(again(2).noise((4,)))
    for other in (make_draws()(3), make_draws(seed=4)(2)):
        assert (one(2).t != other.t).any()
        assert (one(2).noise((4,)) != other.noise((4,))).all()


def test_noise_is_standard_normal_and_differs_by_position():
    noise = make_draws(batch_size=16)(0).noise((64, 64))
    assert noise.dtype == torch.float32
    # 65,536 draws: the mean is within 4 / 256, the variance within 4 sqrt(2) / 256.
    assert abs(noise.mean()) < 0.016
    assert abs(noise.var() - 1) < 0.023
    correlation = torch.corrcoef(noise.flatten(1)) - torch.eye(16)
    assert correlation.abs().max() < 5 / 64  # of 4,096 pairs each: standard deviation 1 / 64


def test_uniform_timesteps_cover_0_to_t_minus_1_evenly():
    draws = make_draws(batch_size=100, num_timesteps=10)
    t = np.concatenate([draws(step).t for step in range(100)])
    counts = np.bincount(t, minlength=10)
    assert len(counts) == 10
    assert ((counts - 1000) ** 2 / 1000).sum() < 27.9  # chi-squared, 9 degrees, p = 0.001


def test_stratified_timesteps_take_one_from_each_part():
    draws = make_draws(batch_size=20, timestep_sampling="stratified")
    for step in range(20):
        assert sorted(draws(step).t // 50) == list(range(20))


def test_stratified_timesteps_are_uniform_at_each_position():
    draws = make_draws(batch_size=8, num_timesteps=10, timestep_sampling="stratified")
    t = np.stack([draws(step).t for step in range(2000)])
    for position in (0, 7):
        counts = np.bincount(t[:, position], minlength=10)
        assert ((counts - 200) ** 2 / 200).sum() < 27.9


def test_flips_and_drops_have_their_share():
    draws = make_draws(batch_size=4000, flip=True, label_dropout=0.1)
    draw = draws(0)
    # Binomial, 4 standard deviations: 4 sqrt(p (1 - p) / 4000).
    assert abs(draw.flips.mean() - 0.5) < 0.032
    assert abs(draw.drops.mean() - 0.1) < 0.019
    still = make_draws()(0)
    assert not still.flips.any()
    assert not still.drops.any()


def test_layout_that_does_not_divide_the_batch_names_the_numbers():
    with pytest.raises(ValueError, match="batch_size=9 is not divisible by 2 processes"):
        Layout(9, processes=2, micro_batch_size=3)
    assert Layout(24, processes=2, micro_batch_size=3).accumulation == 4


def test_dropout_is_drawn_anew_by_step_and_process_and_repeats():
    def mask(step: int, process: int) -> torch.Tensor:
        seed_dropout(0, step, process)
        return torch.nn.functional.dropout(torch.ones(64), 0.5)

    assert mask(1, 0).equal(mask(1, 0))
    assert not mask(1, 0).equal(mask(2, 0))
    assert not mask(1, 0).equal(mask(1, 1))


def test_validation_draws_are_the_same_for_every_count_of_them():
    few, many = (validation_draw(3, 7, count, 1000) for count in (10, 50))
    assert many[slice(0, 10)].t.tolist() == few.t.tolist()
    assert many[slice(0, 10)].indices.tolist() == few.indices.tolist()
    assert many[np.array([4, 9])].noise((1, 2, 2)).equal(few.noise((1, 2, 2))[[4, 9]])
    assert not few.flips.any()
    assert not few.drops.any()


def test_validation_takes_every_image_before_any_again():
    draw = validation_draw(0, 7, 21, 1000)
    for first in (0, 7, 14):
        assert sorted(draw.indices[first : first + 7]) == list(range(7))


def test_any_stretch_of_validation_covers_the_timesteps_evenly():
    t = validation_draw(0, 100, 1000, 1000).t
    for first in range(0, 1000, 100):
        counts = np.bincount(t[first : first + 100] // 100, minlength=10)
        # The golden section leaves gaps of two sizes at most, within a factor of 2.7.
        assert counts.min() >= 8
        assert counts.max() <= 12


def test_validation_noise_is_no_training_noise():
    training, validation = make_draws()(0), validation_draw(3, 50, 12, 1000)
    assert not training.noise((1, 4, 4)).equal(validation.noise((1, 4, 4)))
