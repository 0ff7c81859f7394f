import pytest
import torch

from training.ema import EMA


def test_average_is_the_geometric_sum_of_the_weights():
    weight = torch.tensor([4.0])
    ema = EMA({"w": weight}, decay=0.75)
    values = [1.0, -2.0, 3.0]
    for update, value in enumerate(values):
        weight.fill_(value)
        ema.update(update)
    expected = 4 * 0.75**3 + 0.25 * (1 * 0.75**2 - 2 * 0.75 + 3)
    torch.testing.assert_close(ema.state_dict()["w"], torch.tensor([expected]))


def test_warmup_follows_tensorflows_num_updates():
    ema = EMA({}, decay=0.5, warmup=True)
    assert [ema.decay_at(k) for k in (0, 2, 7, 8, 1000)] == [0.1, 0.25, 8 / 17, 0.5, 0.5]
    assert EMA({}, decay=0.5).decay_at(0) == 0.5


def test_average_is_float32_of_weights_in_half_precision():
    weight = torch.tensor([1.0], dtype=torch.bfloat16)
    ema = EMA({"w": weight}, decay=0.999)
    weight.fill_(2.0)
    ema.update(0)
    # In bf16, 1.001 is 1.
    torch.testing.assert_close(ema.state_dict()["w"], torch.tensor([1.001]))


def test_saved_averages_go_to_their_names_whatever_the_order():
    first = EMA({"a": torch.zeros(2), "b": torch.ones(2)}, decay=0.9)
    second = EMA({"b": torch.full((2,), 5.0), "a": torch.full((2,), 5.0)}, decay=0.9)
    second.load_state_dict(first.state_dict())
    assert second.state_dict()["a"].equal(torch.zeros(2))
    assert second.state_dict()["b"].equal(torch.ones(2))


def test_average_starts_as_a_copy_that_the_weights_do_not_move():
    weight = torch.ones(3)
    ema = EMA({"w": weight}, decay=0.9)
    weight.zero_()
    assert ema.state_dict()["w"].equal(torch.ones(3))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, r"differ in \['w'\]"),
        ({"w": torch.ones(3), "x": torch.ones(1)}, r"differ in \['x'\]"),
        ({"w": torch.ones(2)}, r"w has shape \(2,\), the network's is \(3,\)"),
    ],
)
def test_averages_of_another_network_are_refused(state, message):
    with pytest.raises(ValueError, match=message):
        EMA({"w": torch.ones(3)}, decay=0.9).load_state_dict(state)
