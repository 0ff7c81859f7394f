"""Share of a model's digits that a classifier recognises, and their Fréchet distance to real ones.

    python benchmarks/digits.py --model runs/demo/model

The classifier is trained on 4,500 of the 5,000 real digits. The share of samples that it classifies
with a probability above 0.9 is printed with the same share of the 500 held-out digits, which is the
upper limit. It is as confident about noisy digits as about clean ones, so look at the samples too.
The Fréchet distance, in its features, is to the 500 held-out digits; only compare distances of
equal numbers of samples. Its weights differ in the last bits with the number of threads.
"""

import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks.judge import FEATURES, moments, read, train_judge
from ddpm_sa.cli import parse, run_program
from ddpm_sa.metrics.distances import frechet_distance
from ddpm_sa.settings.ranges import Count
from sampling.common.sampler_settings import SamplerSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(SamplerSettings):
    """Settings of the benchmark, with those of sampling/sample.py.

    Attributes:
        model: Makes grey 32 x 32 digits: a model folder, a run, or one of its checkpoints.
        num_images: Number of samples to classify.
        epochs: Epochs of the classifier's training.
        threads: Of torch.
    """

    model: str
    num_images: Count = 256
    scheduler: str = "euler_ancestral"
    epochs: Count = 15
    threads: Count = 1


def main() -> None:
    settings = parse(Settings)
    torch.set_num_threads(settings.threads)
    pipeline = settings.open(settings.model)
    if pipeline.image_format.shape != (1, 32, 32):
        raise ValueError(
            f"the classifier reads 1 x 32 x 32 digits; {settings.model} makes "
            f"{pipeline.image_format}"
        )
    method = settings.make_method(pipeline)
    batches = pipeline.batches(range(settings.num_images), method, settings.seed, batch_size=64)
    digits = torch.cat([batch.images for batch in batches])
    judge, real, labels = train_judge(settings.epochs)
    sure, read_as = read(judge, digits).max(1)
    real_sure, real_read_as = read(judge, real).max(1)
    right = (real_read_as == labels).double().mean()
    print(f"real digits, unseen: {right:.1%} read right, {share(real_sure):.1%} with p > 0.9")
    print(f"{len(sure)} samples: {share(sure):.1%} with p > 0.9")
    print(f"samples read as 0 ... 9: {read_as.bincount(minlength=10).tolist()}")
    if len(digits) > FEATURES:
        distance = frechet_distance(moments(judge, digits), moments(judge, real))
        print(f"Fréchet distance to the unseen ones: {distance:.3f}")


def share(sure: Tensor) -> float:
    """Compute the share of probabilities above 0.9."""
    return (sure > 0.9).double().mean().item()


if __name__ == "__main__":
    run_program(main)
