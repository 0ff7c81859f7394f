"""What a model's README.md says of its training."""

from typing import Any

import yaml

from training.config import TrainConfig
from training.saved_config import to_plain

CARD = """\
## Training

| | |
|---|---|
{table}

The settings in full, as `training/train.py --config` reads them:

```yaml
{settings}```
"""


def about_training(
    config: TrainConfig,
    step: int,
    weights: str,
    images: dict[str, Any],
    rows: list[dict[str, Any]],
) -> str:
    """A section in Markdown.

    Args:
        config: Of the run.
        step: Updates done.
        weights: Which of the run's weights these are.
        images: What they turned out to be.
        rows: The records of the run.
    """
    facts = {
        "images": f"{images['number']:,} from {config.data.source}",
        "steps": f"{step:,} of {config.batch_size} images",
        "weights": weights,
    }
    for name, label in (("loss", "training loss"), ("validation_loss", "validation loss")):
        found = [row for row in rows if row.get(name) is not None]
        if found:
            facts[label] = f"{found[-1][name]:.5f} at step {found[-1]['step']:,}"
    if "validation loss" in facts:
        facts["validation loss"] += ", of the averaged weights on images held out"
    return CARD.format(
        table="\n".join(f"| {name} | {value} |" for name, value in facts.items()),
        settings=yaml.safe_dump(to_plain(config), sort_keys=False),
    )


def weights_of(name: str, config: TrainConfig) -> str:
    """What to call the weights in `model`, `model-raw` or `model-ema-0.999`."""
    if name == "model-raw":
        return "as they were trained, not averaged"
    decay = name.removeprefix("model-ema-") if name != "model" else config.ema.decay
    return f"the moving average of decay {decay}"
