"""Command-line settings of the sampler."""

import re
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Annotated, Any, Literal

from ddpm_sa import Pipeline
from ddpm_sa.errors import UserError
from ddpm_sa.guidance.base import Guidance
from ddpm_sa.guidance.by_name import USED_BY, check_together
from ddpm_sa.samplers.feature_cache import check_interval
from ddpm_sa.samplers.method import Method, dry_run
from ddpm_sa.samplers.schedulers import Option
from ddpm_sa.settings.ranges import Count, Fraction, Index, NonNegative, Range, check_ranges
from sampling.common.model_loading import ModelSettings, weights_hash

Width = Annotated[float, Range(above=0, infinite=True)]


@dataclass(frozen=True, kw_only=True)
class GuidanceSettings:
    """Command-line settings of guidance; docs/sampling.md lists what each kind costs.

    Attributes:
        kind: What the weak prediction comes from: cfg (no label), condition (no image), pag
            (attention switched off), sag (a blurred image), seg (blurred queries), auto (a weaker
            model); or none.
        scale: w in strong + w (strong - weak); 0 turns guidance off. diffusers' guidance_scale is
            1 + w.
        interval: Guide only at timesteps FROM <= t < TO, given as FROM:TO; by default at all.
        rescale: How much of the unguided prediction's standard deviation to restore.
        sigma: Standard deviation of the blur: for sag in pixels of the image, 3 by default; for seg
            in pixels of the layer, infinite by default.
        layers: Names of the attention layers that pag, seg or sag use; by default the middle one.
        null_class: The class that means "no label", if images.json does not define it.
        condition_scale: w of guidance by the condition, beside that of another kind.
        model: The weaker model for auto, such as an earlier checkpoint of the same run; opened
            with the same weights (ema or raw) and dtype as the model.
    """

    kind: Literal["none", "cfg", "condition", "pag", "sag", "seg", "auto"] = "none"
    scale: NonNegative = 1.0
    interval: str | None = None
    rescale: Fraction = 0.0
    sigma: Width | None = None
    layers: list[str] | None = None
    null_class: Index | None = None
    condition_scale: NonNegative = 0.0
    model: str | None = None

    def __post_init__(self) -> None:
        check_ranges(self, "guidance.")

    def unused(self) -> dict[str, str]:
        if self.kind == "none":
            names = (field.name for field in fields(self) if field.name != "kind")
            return dict.fromkeys(names, "guidance.kind=none; give one, such as cfg")
        return {
            name: f"guidance.kind={self.kind} does not use it; {', '.join(kinds)} "
            f"{'does' if len(kinds) == 1 else 'do'}"
            for name, kinds in USED_BY.items()
            if self.kind not in kinds
        }

    def guide(self, pipeline: Pipeline, weaker: Pipeline | None) -> Guidance | None:
        """Build the guidance for this pipeline, or None; `weaker` is the opened `model`."""
        if self.kind == "none":
            return None
        return pipeline.guidance(
            self.kind,
            self.scale,
            interval=self._interval(),
            rescale=self.rescale,
            sigma=self.sigma,
            layers=self.layers,
            null_class=self.null_class,
            weaker=weaker,
            condition_scale=self.condition_scale,
        )

    def _interval(self) -> tuple[float, float] | None:
        if self.interval is None:
            return None
        bounds = re.fullmatch(r"(\d{1,18}):(\d{1,18})", self.interval)
        if bounds is None:
            raise UserError(f"guidance.interval={self.interval!r} must be FROM:TO, as in 200:800")
        return int(bounds[1]), int(bounds[2])


@dataclass(frozen=True, kw_only=True)
class SamplerSettings(ModelSettings):
    """Command-line settings of the sampler, and of the models that it evaluates.

    Attributes:
        steps: Number of steps, at most the number of training timesteps.
        scheduler: ddpm, ddim, dpmsolver++, dpmsolver++sde, unipc, euler, euler_ancestral, heun or
            another name listed in docs/sampling.md.
        scheduler_options: Options of that scheduler, one flag each, as in
            `--scheduler_options.eta 0.5`; an unknown name is refused with the list of known ones.
        guidance: Settings of guidance.
        cache_interval: Recompute the low-resolution part of the network only every this many steps;
            1 recomputes always, 3 is faster with small differences.
    """

    steps: Count = 50
    scheduler: str = "ddim"
    scheduler_options: dict[str, Option] = field(default_factory=dict)
    guidance: GuidanceSettings = field(default_factory=GuidanceSettings)
    cache_interval: Count = 1

    @cached_property
    def weaker(self) -> Pipeline | None:
        """The weaker model of guidance, with the weights and precision that the model has.

        Raises:
            ValueError: If there is no such model, or it has no such weights.
        """
        if self.guidance.model is None:
            return None
        try:
            return self.open(self.guidance.model)
        except UserError as error:
            raise UserError(f"guidance.model={self.guidance.model}: {error}") from error

    def make_method(self, pipeline: Pipeline) -> Method:
        """Build the sampling method, and try it on one pixel.

        Raises:
            ValueError: If this pipeline cannot sample this way.
        """
        method = Method(
            steps=self.steps,
            scheduler=self.scheduler,
            scheduler_options=self.scheduler_options,
            guide=self.guidance.guide(pipeline, self.weaker),
            cache_interval=self.cache_interval,
        )
        check_interval(pipeline.unet, self.cache_interval)
        check_together(method.guide, self.cache_interval)
        dry_run(method, pipeline.scheduler)
        return method

    def record(self) -> dict[str, Any]:
        """The settings as samples.json records them."""
        guidance = None if self.guidance.kind == "none" else asdict(self.guidance)
        if guidance and not self.guidance.condition_scale:
            del guidance["condition_scale"]  # as folders of earlier versions have it
        if guidance and self.weaker is not None:
            guidance["weights_sha256"] = weights_hash(self.weaker)
        return {
            "scheduler": self.scheduler,
            "scheduler_options": self.scheduler_options,
            "steps": self.steps,
            "guidance": guidance,
            "cache_interval": self.cache_interval,
        }
