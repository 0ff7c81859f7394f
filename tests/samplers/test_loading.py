import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest

from ddpm_sa.diffusion.schedule import NoiseSchedule
from ddpm_sa.samplers.loading import SCHEDULER_CLASSES, read_scheduler


def installed() -> list[Any]:
    """The listed classes, but those whose package is missing here."""
    classes = [getattr(diffusers, name) for name in SCHEDULER_CLASSES]
    return [cls for cls in classes if not hasattr(cls, "_backends")]


def test_only_schedulers_that_describe_a_ddpm_are_listed() -> None:
    for cls in installed():
        assert issubclass(cls, diffusers.SchedulerMixin)
        assert {"beta_schedule", "prediction_type"} <= inspect.signature(cls).parameters.keys()


def test_every_scheduler_of_a_ddpm_is_listed() -> None:
    for name in dir(diffusers):
        cls = getattr(diffusers, name) if name.endswith("Scheduler") else None
        if isinstance(cls, type) and issubclass(cls, diffusers.SchedulerMixin):
            known = inspect.signature(cls).parameters.keys()
            describes = {"beta_schedule", "trained_betas", "prediction_type"} <= known
            # CogVideoX's are for latent video: they shift the signal-to-noise ratio.
            assert (name in SCHEDULER_CLASSES) == (describes and "snr_shift_scale" not in known)


@pytest.mark.parametrize("cls", installed(), ids=lambda cls: cls.__name__)
def test_what_diffusers_saves_is_read_as_diffusers_reads_it(cls: Any, tmp_path: Path) -> None:
    options = {"beta_end": 0.03, "num_train_timesteps": 500, "prediction_type": "v_prediction"}
    if cls is diffusers.LCMScheduler or cls is diffusers.TCDScheduler:
        options["original_inference_steps"] = 25
    cls(**options).save_pretrained(tmp_path)
    found, theirs = (
        read_scheduler(tmp_path / "scheduler_config.json"),
        cls.from_pretrained(tmp_path),
    )
    assert type(found) is cls
    hidden = ("_class_name", "_diffusers_version", "_use_default_values")
    ours, expected = (
        {k: v for k, v in scheduler.config.items() if k not in hidden}
        for scheduler in (found, theirs)
    )
    assert ours == expected
    assert NoiseSchedule.from_scheduler(found).betas.equal(
        NoiseSchedule.from_scheduler(theirs).betas
    )


def test_a_scheduler_for_flow_matching_is_refused(tmp_path: Path) -> None:
    diffusers.FlowMatchEulerDiscreteScheduler().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'FlowMatchEulerDiscreteScheduler', which is not a"):
        read_scheduler(tmp_path / "scheduler_config.json")


def test_a_combination_that_diffusers_refuses_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "scheduler_config.json"
    spacings = {"use_karras_sigmas": True, "use_exponential_sigmas": True}
    path.write_text(json.dumps({"_class_name": "HeunDiscreteScheduler"} | spacings))
    with pytest.raises(ValueError, match="refused by diffusers' HeunDiscreteScheduler") as told:
        read_scheduler(path)
    assert "\n" not in str(told.value)
