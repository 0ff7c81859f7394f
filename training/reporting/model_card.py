"""The section of a model card about training."""

from typing import Any

import yaml

from training.config import TrainConfig
from training.saved_config import to_plain

CARD = """\
## Training

| | |
|---|---|
{table}

All settings, which `training/train.py --config` can read:

```yaml
{settings}```
"""


def describe_training(
    config: TrainConfig,
    step: int,
    weights: str,
    images: dict[str, Any],
    rows: list[dict[str, Any]],
) -> str:
    """Write the section in Markdown.

    Args:
        config: Settings of the run.
        step: Number of updates done.
        weights: Description of the weights.
        images: Properties of the training images.
        rows: Records of the run.
    """
    facts = {
        "images": f"{images['number']:,} from {config.data.source}",
        "steps": f"{step:,} of {config.batch_size} images",
        "weights": weights,
    }
    for name, label in (("loss", "training loss"), ("validation_loss", "validation loss")):
        recorded = [row for row in rows if row.get(name) is not None]
        if recorded:
            facts[label] = f"{recorded[-1][name]:.5f} at step {recorded[-1]['step']:,}"
    if "validation loss" in facts:
        facts["validation loss"] += ", of the averaged weights on held-out images"
    return CARD.format(
        table="\n".join(f"| {name} | {value} |" for name, value in facts.items()),
        settings=yaml.safe_dump(to_plain(config), sort_keys=False),
    )


def describe_weights(name: str, config: TrainConfig) -> str:
    """Describe the weights in `model`, `model-raw` or `model-ema-0.999`."""
    if name == "model-raw":
        return "raw, without averaging"
    decay = name.removeprefix("model-ema-") if name != "model" else config.ema.decay
    return f"exponential moving average with decay {decay}"
