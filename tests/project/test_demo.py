"""What `make demo` left in runs/demo: digits that can be read."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.judge import read, train_judge
from ddpm_sa.image_format import to_tensor

RUN = Path(__file__).parents[2] / "runs" / "demo"
GRID = RUN / "digits" / "grid.png"


@pytest.mark.slow
@pytest.mark.skipif(not GRID.is_file(), reason="`make demo` was not run here")
def test_a_classifier_of_real_digits_is_sure_of_four_fifths_of_the_grid():
    if not (RUN / "checkpoints" / "step-00001300").is_dir():
        pytest.skip("the demo's training was stopped by its minutes")
    grid = np.asarray(Image.open(GRID))
    rows, columns = (length // 32 for length in grid.shape)
    digits = grid.reshape(rows, 32, columns, 32).swapaxes(1, 2).reshape(-1, 32, 32, 1)
    assert len(digits) == 64
    judge, real, labels = train_judge(epochs=15)
    sure, _ = read(judge, to_tensor(digits)).max(1)
    real_sure, real_read_as = read(judge, real).max(1)
    assert (real_read_as == labels).double().mean() > 0.97
    assert (real_sure > 0.9).double().mean() > 0.95  # or it says nothing
    assert (sure > 0.9).double().mean() >= 0.8
