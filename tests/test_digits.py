"""The main job on real images: what `make demo` trains makes digits that a stranger reads."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ddpm_sa import Pipeline
from tests.digits import read, train_judge

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_digits_after_six_minutes_are_read_by_a_classifier_of_real_ones(tmp_path: Path) -> None:
    config = ["--config", "training/configs/mnist.yaml", "--output_dir", str(tmp_path / "run")]
    subprocess.run([sys.executable, "training/train.py", *config], cwd=ROOT, check=True)
    judge, accuracy = train_judge()
    assert accuracy > 0.95  # else it is no judge

    pipeline = Pipeline.from_pretrained(tmp_path / "run" / "model")
    digits = pipeline(num_images=128, steps=50, batch_size=32, output_type="pt").images * 2 - 1
    sure, read_as = read(judge, torch.as_tensor(digits)).max(1)
    assert (sure > 0.9).double().mean() >= 0.8
    assert len(read_as[sure > 0.9].unique()) >= 8  # not one digit again and again
