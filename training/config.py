"""The settings of a training run; each field is a flag, and its docstring is the flag's help.

The defaults are the recipe of Ho et al. 2020 for CIFAR-10.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from ddpm_sa.data.config import DataConfig
from ddpm_sa.errors import require


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network."""

    preset: str = "cifar10"
    """A network of ddpm_sa.models.presets, initialised as the paper does."""
    init_from: str | None = None
    """Fine-tune the network of this model folder or Hub repository, instead of `preset`."""
    attention_resolutions: list[int] | None = None
    """Use attention where the feature map has these heights, e.g. [16]. None: as in the preset."""
    dropout: float | None = None
    """Dropout in the residual blocks. None: as in the preset."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    unet: dict[str, Any] = field(default_factory=dict)
    """Arguments of UNet that override the preset's: {block_out_channels: [64, 128]}."""

    def __post_init__(self) -> None:
        taken = {"in_channels", "out_channels", "sample_size", "num_class_embeds"} & set(self.unet)
        require(not taken, f"model.unet sets {sorted(taken)}, which follow from the data")
        require(
            self.init_from is None or self.attention_resolutions is None,
            f"model.attention_resolutions={self.attention_resolutions} cannot be used with "
            f"model.init_from={self.init_from}, whose attention layers are fixed",
        )


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
    num_timesteps: int = 1000
    """Number of timesteps T."""
    beta_start: float = 1e-4
    """beta at t = 0; not used by the cosine schedule."""
    beta_end: float = 0.02
    """beta at t = T - 1; not used by the cosine schedule."""

    def __post_init__(self) -> None:
        require(
            0 < self.beta_start <= self.beta_end < 1,
            f"schedule.beta_start={self.beta_start}, schedule.beta_end={self.beta_end}: "
            "0 < start <= end < 1",
        )
        require(self.num_timesteps >= 2, f"schedule.num_timesteps={self.num_timesteps}: 2 or more")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Adam (Kingma & Ba 2015) or Muon (Jordan et al. 2024), with linear warm-up and clipping."""

    optimizer: Literal["adam", "muon"] = "adam"
    """muon: orthogonalised momentum for hidden weight matrices, AdamW for the rest. Learns more per
    image; the extra cost per update matters less with large batches."""
    lr: float = 2e-4
    """Learning rate after the warm-up."""
    warmup_steps: int = 5000
    """Update k (from 0) uses lr * min(k / warmup_steps, 1), as in the paper's code: 0 first."""
    decay_steps: int | None = None
    """After the warm-up lr falls linearly to 0 at this update. None: constant, as in the paper."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the running means of the gradient and of its square."""
    eps: float = 1e-8
    """Added to the square root of the second mean, for numerical stability."""
    weight_decay: float = 0.0
    """Decoupled weight decay, as in AdamW."""
    grad_clip: float | None = 1.0
    """Maximum norm of the batch's gradient. None: no clipping."""

    def __post_init__(self) -> None:
        require(self.lr > 0, f"optim.lr={self.lr} must be above 0")
        require(self.warmup_steps >= 0, f"optim.warmup_steps={self.warmup_steps}: 0 or more")
        require(
            self.decay_steps is None or self.decay_steps > self.warmup_steps,
            f"optim.decay_steps={self.decay_steps} must be above "
            f"optim.warmup_steps={self.warmup_steps}, or null for no decay",
        )
        require(
            self.grad_clip is None or self.grad_clip > 0,
            f"optim.grad_clip={self.grad_clip} must be above 0, or null for no limit",
        )


@dataclass(frozen=True, kw_only=True)
class EMAConfig:
    """Exponential moving average of the weights, which samples and the saved model use."""

    decay: float = 0.9999
    """Decay rate of the average."""
    warmup: bool = False
    """Use min(decay, (1 + k) / (10 + k)) at update k, so that short runs forget their start."""
    more: list[float] = field(default_factory=list)
    """Further decay rates, e.g. [0.999, 0.99]; each average is saved too, as model-ema-0.999/."""
    keep_raw: bool = False
    """Also save the weights without averaging, as model-raw/."""

    def __post_init__(self) -> None:
        require(0 <= self.decay < 1, f"ema.decay={self.decay} must be in [0, 1)")
        for decay in self.more:
            require(0 <= decay < 1, f"ema.more={self.more}: {decay} must be in [0, 1)")
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
    steps: int = 800_000
    """Optimiser updates."""
    batch_size: int = 128
    """Images per update, over all processes and accumulation steps."""
    micro_batch_size: int | Literal["auto"] | None = None
    """Images that a process evaluates at once. None: its whole share of the batch. auto: the
    largest part of it that fits into memory. The number of accumulation steps is batch_size /
    (processes * micro_batch_size)."""
    seed: int = 0
    """All random numbers are functions of the seed, the step and the position in the batch."""
    save_every: int = 5000
    """Updates between checkpoints."""
    sample_every: int = 5000
    """Updates between sample grids; 0: none."""
    validate_every: int = 5000
    """Updates between validations on the images that data.validation holds out; 0: none."""
    log_every: int = 100
    """Updates averaged in one line of metrics.jsonl."""
    num_samples: int = 16
    """Images in a sample grid."""
    num_validation: int = 1000
    """Losses averaged in a validation, over the held-out images in turn; the timestep and noise of
    each are the same in every validation."""
    sample_steps: int = 25
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
    time_limit: float | None = None
    """Minutes after which the run ends as if all steps were done."""
    keep_checkpoints: int = 2
    """Number of newest valid checkpoints to keep; older ones are removed."""
    keep_every: int | None = None
    """Also keep older checkpoints whose step is a multiple of this. None: keep none of them."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """If a loss or gradient is not finite: end the run, or skip the update and count it."""
    tracker: Literal["tensorboard", "wandb", "trackio", "none"] = "tensorboard"
    """Where to log curves and sample grids, besides metrics.jsonl and samples/."""

    def __post_init__(self) -> None:
        counts = {
            "steps": self.steps,
            "batch_size": self.batch_size,
            "save_every": self.save_every,
            "log_every": self.log_every,
            "num_samples": self.num_samples,
            "num_validation": self.num_validation,
            "sample_steps": self.sample_steps,
            "keep_checkpoints": self.keep_checkpoints,
        }
        for name, value in counts.items():
            require(value >= 1, f"{name}={value} must be 1 or more")
        require(
            self.keep_every is None
            or (self.keep_every >= 1 and self.keep_every % self.save_every == 0),
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
        require(self.seed >= 0, f"seed={self.seed} must be 0 or more")
        for name in ("sample_every", "validate_every"):
            require(getattr(self, name) >= 0, f"{name}={getattr(self, name)} must be 0 or more")
        require(
            self.micro_batch_size in (None, "auto") or int(self.micro_batch_size) >= 1,
            f"micro_batch_size={self.micro_batch_size} must be 1 or more, or auto",
        )
