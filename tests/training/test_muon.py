"""Muon against torch's own, and against the singular values that it is about."""

import pytest
import torch
from torch import nn

from training.muon import Muon, orthogonalize


def with_gradients(network: nn.Module, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=random)


@pytest.mark.parametrize("shape", [(3, 8, 24), (2, 24, 8), (1, 16, 16)])
def test_orthogonal_keeps_the_singular_vectors_and_evens_out_the_values(
    shape: tuple[int, int, int],
) -> None:
    random = torch.Generator().manual_seed(0)
    u, _, vh = torch.linalg.svd(torch.randn(shape, generator=random), full_matrices=False)
    spread = torch.logspace(-2, 0, min(shape[1:]))
    matrices = u * spread @ vh
    within = u.mT @ orthogonalize(matrices) @ vh.mT
    values = within.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(within, torch.diag_embed(values), atol=1e-4, rtol=0)
    assert values.min() > 0.65
    assert values.max() < 1.25


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has it from 2.9 on")
def test_a_hidden_matrix_moves_as_under_torch_muon() -> None:
    """torch's iterates in bfloat16, so a step agrees to some of its 8 bits."""
    ours, theirs = nn.Linear(24, 16, bias=False), nn.Linear(24, 16, bias=False)
    theirs.load_state_dict(ours.state_dict())
    before = ours.weight.detach().clone()
    optimizer = Muon(ours, lr=0.01, weight_decay=0.1)
    reference = torch.optim.Muon(
        theirs.parameters(), lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    for step in range(3):
        with_gradients(ours, step)
        with_gradients(theirs, step)
        optimizer.step()
        reference.step()
    moved, expected = ours.weight - before, theirs.weight - before
    assert (moved - expected).norm() < 0.03 * expected.norm()


def test_a_convolution_moves_as_the_matrix_of_its_outputs() -> None:
    convolution, matrix = nn.Conv2d(4, 8, 3, bias=False), nn.Linear(36, 8, bias=False)
    with torch.no_grad():
        matrix.weight.copy_(convolution.weight.flatten(1))
    both = nn.ModuleDict({"conv": convolution, "matrix": matrix})
    with_gradients(both, 0)
    assert convolution.weight.grad is not None
    matrix.weight.grad = convolution.weight.grad.flatten(1)
    Muon(both, lr=0.01).step()
    torch.testing.assert_close(convolution.weight.flatten(1), matrix.weight)


def test_biases_and_ends_move_as_under_adamw() -> None:
    def network() -> nn.ModuleDict:
        torch.manual_seed(0)
        layers = {"conv_in": nn.Conv2d(1, 4, 3), "hidden": nn.Conv2d(4, 4, 3)}
        return nn.ModuleDict(layers)

    ours, theirs = network(), network()
    optimizer = Muon(ours, lr=0.01, betas=(0.9, 0.99))
    reference = torch.optim.AdamW(theirs.parameters(), lr=0.01, betas=(0.9, 0.99), weight_decay=0)
    for step in range(3):
        with_gradients(ours, step)
        with_gradients(theirs, step)
        optimizer.step()
        reference.step()
    expected = theirs.state_dict()
    for name, value in ours.state_dict().items():
        if name == "hidden.weight":
            assert not value.allclose(expected[name])
        else:
            torch.testing.assert_close(value, expected[name])
