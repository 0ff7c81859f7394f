"""The settings of a training run; each field is a flag, and its docstring is the flag's help.

The defaults are the recipe of Ho et al. 2020 for CIFAR-10.
"""

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, Self

from ddpm_sa.conditions.config import ConditionConfig
from ddpm_sa.data.config import DataConfig
from ddpm_sa.errors import require
from ddpm_sa.settings.ranges import (
    Count,
    Index,
    NonNegative,
    Positive,
    Range,
    Rate,
    Seed,
    Share,
    check_ranges,
)

# Settings that fine-tuning takes from the model it starts from, and their names in the
# configuration of a diffusers scheduler.
OF_SAVED_MODEL = {
    "objective.prediction_type": "prediction_type",
    "schedule.kind": "beta_schedule",
    "schedule.num_timesteps": "num_train_timesteps",
    "schedule.beta_start": "beta_start",
    "schedule.beta_end": "beta_end",
}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network."""

    preset: str = "cifar10"
    """A network of ddpm_sa.models.presets, initialised as the paper does. auto: the network that
    follows from the size of the images (ddpm_sa.models.sizing): levels until 4 to 8 pixels are
    left, with attention where there are at most 16."""
    width: Count | None = None
    """Channels of the first level, which the widths of the other levels follow; for preset auto
    only. None: 128."""
    init_from: str | None = None
    """Fine-tune the network of this model folder, run or Hub repository, instead of `preset`, with
    its prediction type and noise schedule."""
    init_override: list[str] | None = None
    """Settings that replace those of the model of `init_from`, e.g. [schedule.kind]; the flags that
    `--override true` allows are added."""
    attention_resolutions: list[Count] | None = None
    """Use attention where the feature map has these heights, e.g. [16]. None: as in the preset."""
    dropout: Rate | None = None
    """Dropout in the residual blocks. None: as in the preset."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    unet: dict[str, Any] = field(default_factory=dict)
    """Arguments of UNet that override the preset's: {block_out_channels: [64, 128]}."""

    def __post_init__(self) -> None:
        check_ranges(self, "model.")
        taken = {"in_channels", "out_channels", "sample_size", "num_class_embeds"} & set(self.unet)
        require(not taken, f"model.unet sets {sorted(taken)}, which follow from the data")
        require(
            self.width is None or (self.preset == "auto" and self.init_from is None),
            f"model.width={self.width} is for model.preset=auto; the widths of "
            f"model.{'preset' if self.init_from is None else 'init_from'}="
            f"{self.init_from or self.preset} are fixed (model.unet changes those of a preset)",
        )
        require(
            self.width is None or "block_out_channels" not in self.unet,
            f"model.width={self.width} has no effect beside block_out_channels in model.unet",
        )
        unknown = set(self.init_override or []) - OF_SAVED_MODEL.keys()
        require(
            not unknown,
            f"model.init_override={self.init_override}: {', '.join(sorted(unknown))} cannot be "
            f"replaced; known are {', '.join(OF_SAVED_MODEL)}",
        )
        require(
            not self.init_override or self.init_from is not None,
            f"model.init_override={self.init_override} has no effect without model.init_from",
        )
        require(
            self.init_from is None or self.attention_resolutions is None,
            f"model.attention_resolutions={self.attention_resolutions} cannot be used with "
            f"model.init_from={self.init_from}, whose attention layers are fixed",
        )

    def unused(self) -> dict[str, str]:
        if self.init_from is None:
            return {}
        return {"preset": f"the network is that of model.init_from={self.init_from}"}


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The training objective."""

    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    """What the network predicts: the noise, the image, or the velocity a eps - s x_0."""
    weighting: Literal["uniform", "min_snr", "p2"] = "uniform"
    """Weight of each timestep's squared error: 1, min-SNR (Hang et al. 2023, gamma = 5), or P2
    (Choi et al. 2022, k = 1, gamma = 1)."""
    timestep_sampling: Literal["uniform", "stratified"] = "uniform"
    """Timesteps of a batch: independent, or one from each of batch_size equal parts of 0..T-1."""
    learned_variance: bool = False
    """Also learn the variance of the reverse step by the hybrid loss (Nichol & Dhariwal 2021), for
    better likelihoods and `ddpm` sampling in few steps."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The noise schedule."""

    kind: Literal["linear", "cosine", "quadratic", "saved"] = "linear"
    """linear (Ho et al. 2020), cosine (Nichol & Dhariwal 2021), quadratic: linear in sqrt(beta), or
    saved: another one, that of the model of `model.init_from`."""
    num_timesteps: Annotated[int, Range(least=2, most=1_000_000)] = 1000
    """Number of timesteps T."""
    beta_start: Share = 1e-4
    """beta at t = 0; not used by the cosine schedule."""
    beta_end: Share = 0.02
    """beta at t = T - 1; not used by the cosine schedule."""

    def __post_init__(self) -> None:
        check_ranges(self, "schedule.")
        require(
            self.beta_start <= self.beta_end,
            f"schedule.beta_start={self.beta_start} must be at most "
            f"schedule.beta_end={self.beta_end}",
        )


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Adam (Kingma & Ba 2015) or Muon (Jordan et al. 2024), with linear warm-up and clipping."""

    optimizer: Literal["adam", "muon"] = "adam"
    """muon: orthogonalised momentum for hidden weight matrices, AdamW for the rest. Learns more per
    image; the extra cost per update matters less with large batches."""
    lr: Positive = 2e-4
    """Learning rate after the warm-up."""
    warmup_steps: Index = 5000
    """Update k (from 0) uses lr * min(k / warmup_steps, 1), as in the paper's code: 0 first."""
    decay_steps: Count | Literal["steps"] | None = None
    """After the warm-up lr falls linearly to 0 at this update; `steps`: at the end of the run,
    whatever `steps` is. None: constant, as in the paper."""
    betas: tuple[Rate, Rate] = (0.9, 0.999)
    """Decay rates of the running means of the gradient and of its square."""
    eps: Positive = 1e-8
    """Added to the square root of the second mean, for numerical stability."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay, as in AdamW."""
    grad_clip: Positive | None = 1.0
    """Maximum norm of the batch's gradient. None: no clipping."""

    def __post_init__(self) -> None:
        check_ranges(self, "optim.")
        require(
            not isinstance(self.decay_steps, int) or self.decay_steps > self.warmup_steps,
            f"optim.decay_steps={self.decay_steps} must be above "
            f"optim.warmup_steps={self.warmup_steps}, or null for no decay",
        )

    def for_steps(self, steps: int) -> Self:
        """The same settings for a run of so many updates: decay_steps is a number or None.

        There is no decay in a run that ends within the warm-up.
        """
        if self.decay_steps != "steps":
            return self
        return replace(self, decay_steps=steps if steps > self.warmup_steps else None)


@dataclass(frozen=True, kw_only=True)
class EMAConfig:
    """Exponential moving average of the weights, which samples and the saved model use."""

    decay: Rate = 0.9999
    """Decay rate of the average."""
    warmup: bool = False
    """Use min(decay, (1 + k) / (10 + k)) at update k, so that short runs forget their start."""
    more: list[Rate] = field(default_factory=list)
    """Further decay rates, e.g. [0.999, 0.99]; each average is saved too, as model-ema-0.999/."""
    keep_raw: bool = False
    """Also save the weights without averaging, as model-raw/."""

    def __post_init__(self) -> None:
        check_ranges(self, "ema.")
        decays = [self.decay, *self.more]
        require(
            len(set(decays)) == len(decays),
            f"ema.decay={self.decay}, ema.more={self.more}: each decay once",
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run."""

    output_dir: str
    """Folder of the run: config.yaml, model/, checkpoints/, samples/, metrics.jsonl."""
    data: DataConfig
    condition: ConditionConfig = field(default_factory=ConditionConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    steps: Count = 800_000
    """Optimiser updates."""
    batch_size: Count = 128
    """Images per update, over all processes and accumulation steps."""
    micro_batch_size: Count | Literal["auto"] | None = None
    """Images that a process evaluates at once, at most: the largest divisor of its share of the
    batch up to this. None: its whole share. auto: the largest divisor that fits into memory. Each
    update accumulates over the micro-batches."""
    seed: Seed = 0
    """All random numbers are functions of the seed, the step and the position in the batch."""
    save_every: Count = 5000
    """Updates between checkpoints."""
    sample_every: Index = 5000
    """Updates between sample grids; 0: none."""
    validate_every: Index = 5000
    """Updates between validations on the images that data.validation holds out; 0: none."""
    log_every: Count = 100
    """Updates averaged in one line of metrics.jsonl."""
    num_samples: Count = 16
    """Images in a sample grid."""
    num_validation: Count = 1000
    """Losses averaged in a validation, over the held-out images in turn; the timestep and noise of
    each are the same in every validation."""
    sample_steps: Count = 25
    """DDIM steps for a sample grid."""
    resume: str = "never"
    """`auto`: continue from the newest valid checkpoint in output_dir, if any; a checkpoint folder:
    continue from it; `never`: output_dir must not hold a run."""
    override: bool = False
    """Allow a resumed run to change settings that affect its results, and fine-tuning to change the
    prediction type and noise schedule of its model; each change is reported."""
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Precision of the network's arithmetic. auto: bf16 if the hardware supports it."""
    compile: bool = False
    """torch.compile the network: takes minutes at the start, speeds up long runs on a GPU."""
    sharding: Literal["none", "fsdp"] = "none"
    """fsdp: shard weights, averages and optimiser state over the processes, if the network does not
    fit on one GPU. none: replicate them."""
    time_limit: NonNegative | None = None
    """Minutes after which the run ends as if all steps were done."""
    keep_checkpoints: Count = 2
    """Number of newest valid checkpoints to keep; older ones are removed."""
    keep_every: Count | None = None
    """Also keep an older checkpoint of each interval of so many updates, the first at its beginning
    or after. None: keep none of them."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """If a loss or gradient is not finite: end the run, or skip the update and count it."""
    tracker: Literal["tensorboard", "wandb", "trackio", "none"] = "tensorboard"
    """Where to log curves and sample grids, besides metrics.jsonl and samples/."""

    def __post_init__(self) -> None:
        check_ranges(self)
        require(
            self.schedule.kind != "saved" or self.model.init_from is not None,
            "schedule.kind=saved needs model.init_from, the model whose schedule is used",
        )
        unsupported_with_fsdp = {
            "optim.optimizer": (self.optim.optimizer, "muon", "adam"),
            "compile": (self.compile, True, False),
            "mixed_precision": (self.mixed_precision, "fp16", "bf16"),
        }
        for name, (value, refused, alternative) in unsupported_with_fsdp.items():
            require(
                self.sharding == "none" or value != refused,
                f"sharding={self.sharding} does not support {name}={value}; use {alternative}",
            )

    def unused(self) -> dict[str, str]:
        unused = {}
        if self.data.validation is None:
            reason = "no images are held out; set data.validation"
            unused |= dict.fromkeys(("validate_every", "num_validation"), reason)
        elif not self.validate_every:
            unused["num_validation"] = "validate_every=0"
        # In fine-tuning the schedule is the model's, whatever kind is given here.
        if self.schedule.kind == "cosine" and self.model.init_from is None:
            reason = "schedule.kind=cosine has betas of its own"
            unused |= dict.fromkeys(("schedule.beta_start", "schedule.beta_end"), reason)
        if self.resume == "never" and self.model.init_from is None:
            unused["override"] = "resume=never starts a new run"
        return unused
