"""The settings of a training run; each field is a flag, and its docstring is the flag's help.

The defaults are the recipe of Ho et al. 2020 for CIFAR-10.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

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


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network."""

    preset: str = "cifar10"
    """A network of ddpm_sa.models.presets, initialised as the paper does."""
    init_from: str | None = None
    """Fine-tune the network of this model folder or Hub repository, instead of `preset`."""
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

    kind: Literal["linear", "cosine", "quadratic"] = "linear"
    """linear (Ho et al. 2020), cosine (Nichol & Dhariwal 2021), or linear in sqrt(beta)."""
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

    def unused(self) -> dict[str, str]:
        reason = "schedule.kind=cosine has betas of its own"
        return dict.fromkeys(("beta_start", "beta_end"), reason) if self.kind == "cosine" else {}


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
    decay_steps: Count | None = None
    """After the warm-up lr falls linearly to 0 at this update. None: constant, as in the paper."""
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
            self.decay_steps is None or self.decay_steps > self.warmup_steps,
            f"optim.decay_steps={self.decay_steps} must be above "
            f"optim.warmup_steps={self.warmup_steps}, or null for no decay",
        )


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
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    steps: Count = 800_000
    """Optimiser updates."""
    batch_size: Count = 128
    """Images per update, over all processes and accumulation steps."""
    micro_batch_size: Count | None = None
    """Images that a process evaluates at once. None: its whole share of the batch. The number of
    accumulation steps is batch_size / (processes * micro_batch_size)."""
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
    """Allow a resumed run to change settings that affect its results; each change is reported."""
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
    """Also keep older checkpoints whose step is a multiple of this. None: keep none of them."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """If a loss or gradient is not finite: end the run, or skip the update and count it."""
    tracker: Literal["tensorboard", "wandb", "trackio", "none"] = "tensorboard"
    """Where to log curves and sample grids, besides metrics.jsonl and samples/."""

    def __post_init__(self) -> None:
        check_ranges(self)
        require(
            self.keep_every is None or self.keep_every % self.save_every == 0,
            f"keep_every={self.keep_every} must be a multiple of save_every={self.save_every}, "
            "or null, since only saved checkpoints can be kept",
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
        if self.resume == "never" and self.model.init_from is None:
            unused["override"] = "resume=never starts a new run"
        return unused
