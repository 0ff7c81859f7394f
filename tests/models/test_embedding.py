import math

import pytest
import torch
from diffusers.models.embeddings import TimestepEmbedding as TheirEmbedding
from diffusers.models.embeddings import get_timestep_embedding
from torch.testing import assert_close

from ddpm_sa.models.embedding import TimestepEmbedding, sinusoid


@pytest.mark.parametrize("dim", [8, 32, 33])
@pytest.mark.parametrize("flip_sin_to_cos", [True, False])
@pytest.mark.parametrize("freq_shift", [0, 1])
def test_sinusoid_has_the_bits_of_diffusers(
    dim: int, flip_sin_to_cos: bool, freq_shift: int
) -> None:
    for t in (torch.arange(0, 1000, 7), torch.tensor([0.5, 17.25, 998.9])):
        ours = sinusoid(t, dim, flip_sin_to_cos=flip_sin_to_cos, freq_shift=freq_shift)
        theirs = get_timestep_embedding(
            t, dim, flip_sin_to_cos=flip_sin_to_cos, downscale_freq_shift=freq_shift
        )
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs)


def test_sinusoid_of_the_paper_runs_from_1_to_1e_4() -> None:
    """[sin | cos], f_i = 10000^(-i / (half - 1)), in the closed form."""
    table = sinusoid(torch.tensor([1]), 128, flip_sin_to_cos=False, freq_shift=1)[0].double()
    f = torch.tensor([10000 ** (-i / 63) for i in range(64)], dtype=torch.float64)
    assert f[1] == pytest.approx(0.8639884494839686)
    assert_close(table, torch.cat([f.sin(), f.cos()]), rtol=0, atol=1e-6)  # float32's rounding
    assert table[63] == pytest.approx(math.sin(1e-4), rel=1e-5)


def test_embedding_has_diffusers_weights_and_output() -> None:
    theirs, ours = TheirEmbedding(8, 16), TimestepEmbedding(8, 16)
    ours.load_state_dict(theirs.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    assert_close(ours(x), theirs(x))
