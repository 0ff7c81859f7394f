"""How to denoise, as the programs that make images are told."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ddpm_sa import Pipeline
from ddpm_sa.guidance.base import Guidance
from ddpm_sa.guidance.by_name import check_together
from ddpm_sa.samplers.feature_cache import check_interval
from ddpm_sa.samplers.method import Method, dry_run
from ddpm_sa.samplers.schedulers import Option
from sampling.common.model_loading import open_model, weights_hash


@dataclass(frozen=True, kw_only=True)
class GuidanceSettings:
    """Away from what a weaker evaluation says; docs/sampling.md has what each kind costs.

    Attributes:
        kind: cfg (without the label), pag (attention switched off), sag (a blurred image), seg
            (blurred queries), auto (a weaker model), or none.
        scale: w in strong + w (strong - weak); 0 is none. diffusers' guidance_scale is 1 + w.
        interval: Guide at timesteps from FROM up to but not TO, as FROM:TO; at all if not given.
        rescale: 0 to 1, how far the spread of the unguided prediction is restored.
        sigma: Of the blur of sag, in pixels, 3 if not given; or of seg, in pixels of the layer,
            endless if not given.
        layers: Names of the attention layers of pag, seg or sag; the middle's if not given.
        null_class: The class that stands for "no label", if images.json does not say.
        model: The weaker model of auto, such as a checkpoint of the same run.
    """

    kind: Literal["none", "cfg", "pag", "sag", "seg", "auto"] = "none"
    scale: float = 1.0
    interval: str | None = None
    rescale: float = 0.0
    sigma: float | None = None
    layers: list[str] | None = None
    null_class: int | None = None
    model: str | None = None

    def guide(self, pipeline: Pipeline) -> Guidance | None:
        """What is meant, for this pipeline."""
        if self.kind == "none":
            if self != GuidanceSettings():
                raise ValueError("guidance settings without guidance.kind; give one, such as cfg")
            return None
        return pipeline.guidance(
            self.kind,
            self.scale,
            interval=self._interval(),
            rescale=self.rescale,
            sigma=self.sigma,
            layers=self.layers,
            null_class=self.null_class,
            weaker=open_model(self.model) if self.model else None,
        )

    def _interval(self) -> tuple[float, float] | None:
        if self.interval is None:
            return None
        low, colon, high = self.interval.partition(":")
        if not (colon and low.isdecimal() and high.isdecimal()):
            raise ValueError(f"guidance.interval={self.interval!r} must be FROM:TO, as in 200:800")
        return int(low), int(high)


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """How to denoise.

    Attributes:
        steps: Steps of the scheduler, at most the timesteps of the training.
        scheduler: ddpm, ddim, dpmsolver++, dpmsolver++sde, unipc, euler, euler_ancestral, heun or
            another of docs/sampling.md.
        scheduler_options: Settings of that scheduler, one flag each, as in
            `--scheduler_options.eta 0.5`; an unknown one is answered with those it has.
        guidance: Away from what a weaker evaluation says.
        cache_interval: Compute the low-resolution part of the network at every so many steps; 1 is
            always, 3 is faster and differs a little.
    """

    steps: int = 50
    scheduler: str = "ddim"
    scheduler_options: dict[str, Option] = field(default_factory=dict)
    guidance: GuidanceSettings = field(default_factory=GuidanceSettings)
    cache_interval: int = 1

    def method(self, pipeline: Pipeline) -> Method:
        """What is meant, tried on one pixel.

        Raises:
            ValueError: If this pipeline cannot do it.
        """
        method = Method(
            steps=self.steps,
            scheduler=self.scheduler,
            scheduler_options=self.scheduler_options,
            guide=self.guidance.guide(pipeline),
            cache_interval=self.cache_interval,
        )
        check_interval(pipeline.unet, self.cache_interval)
        check_together(method.guide, self.cache_interval)
        dry_run(method, pipeline.scheduler)
        return method

    def record(self) -> dict[str, Any]:
        """As samples.json keeps it."""
        guidance = None if self.guidance.kind == "none" else asdict(self.guidance)
        if guidance and self.guidance.model:
            weaker = open_model(self.guidance.model)
            guidance["weights_sha256"] = weights_hash(weaker)
        return {
            "scheduler": self.scheduler,
            "scheduler_options": self.scheduler_options,
            "steps": self.steps,
            "guidance": guidance,
            "cache_interval": self.cache_interval,
        }
