"""The settings of a training run; every field is a flag, its docstring is the flag's help.

The defaults are the recipe of Ho et al. 2020 for CIFAR-10.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from ddpm_sa.data.config import DataConfig, require


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network."""

    preset: str = "cifar10"
    """A network of ddpm_sa.models.presets, initialised as the paper does."""
    init_from: str | None = None
    """Fine-tune: this model folder or hub repository gives network and weights, not `preset`."""
    attention_resolutions: list[int] | None = None
    """Attention where the grid has these heights, e.g. [16]. None: where the preset has it."""
    dropout: float | None = None
    """Dropout in the residual blocks. None: the preset's."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    unet: dict[str, Any] = field(default_factory=dict)
    """Any argument of UNet, over the preset's: {block_out_channels: [64, 128]}."""

    def __post_init__(self) -> None:
        taken = {"in_channels", "out_channels", "sample_size", "num_class_embeds"} & set(self.unet)
        require(not taken, f"model.unet sets {sorted(taken)}, which follow from the data")
        require(
            self.init_from is None or self.attention_resolutions is None,
            f"model.attention_resolutions={self.attention_resolutions} cannot be chosen with "
            f"model.init_from={self.init_from}, which brings its own",
        )


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What is learned."""

    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    """What the network's output means: the noise, the image, or the velocity a eps - s x_0."""
    weighting: Literal["uniform", "min_snr", "p2"] = "uniform"
    """Weight of each timestep's squared error: 1, min-SNR (Hang et al. 2023, gamma = 5), or P2
    (Choi et al. 2022, k = 1, gamma = 1)."""
    timestep_sampling: Literal["uniform", "stratified"] = "uniform"
    """Timesteps of a batch: independent, or one from each of batch_size equal parts of 0..T-1."""
    learned_variance: bool = False
    """Learn the variance of the reverse step too, by the hybrid loss (Nichol & Dhariwal 2021): for
    likelihoods, and for `ddpm` sampling in few steps."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How noise grows with t."""

    kind: Literal["linear", "cosine", "quadratic"] = "linear"
    """linear (Ho et al. 2020), cosine (Nichol & Dhariwal 2021), or linear in sqrt(beta)."""
    num_timesteps: int = 1000
    """T."""
    beta_start: float = 1e-4
    """beta of t = 0; the cosine schedule has none."""
    beta_end: float = 0.02
    """beta of t = T - 1; the cosine schedule has none."""

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
    """muon: hidden layers' weights move by their momentum made orthogonal, the rest by Adam; it
    learns more from each image, and takes time per update that a large batch makes up for."""
    lr: float = 2e-4
    """Learning rate after the warm-up."""
    warmup_steps: int = 5000
    """Update k (from 0) uses lr * min(k / warmup_steps, 1), as the paper's code: the first is 0."""
    decay_steps: int | None = None
    """After the warm-up lr falls linearly, to 0 at this update. None: it stays, as in the paper."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square."""
    eps: float = 1e-8
    """Added to the root of the second mean."""
    weight_decay: float = 0.0
    """Pull of the weights to 0, decoupled from the gradient (AdamW) where it is not 0."""
    grad_clip: float | None = 1.0
    """Largest norm of the gradient of the whole batch. None: no limit."""

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
    """The moving average of the weights, which is what is sampled and kept."""

    decay: float = 0.9999
    """Share of the average that each update keeps."""
    warmup: bool = False
    """Keep min(decay, (1 + k) / (10 + k)) at update k: short runs forget their start sooner."""
    more: list[float] = field(default_factory=list)
    """Further decays, e.g. [0.999, 0.99]: each average is kept too, as model-ema-0.999/."""
    keep_raw: bool = False
    """Keep the weights as they were trained too, not averaged, as model-raw/."""

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
    """Images of one update, over all processes and accumulation."""
    micro_batch_size: int | None = None
    """Images a process evaluates at once. None: its whole share of the batch. Accumulation
    follows: batch_size / (processes * micro_batch_size)."""
    seed: int = 0
    """Every draw is a function of it, of the step and of the position in the batch."""
    save_every: int = 5000
    """Updates between checkpoints."""
    sample_every: int = 5000
    """Updates between sample grids; 0: none."""
    validate_every: int = 5000
    """Updates between losses on the images that data.validation holds out; 0: none."""
    log_every: int = 100
    """Updates that one line of metrics.jsonl averages."""
    num_samples: int = 16
    """Images of a sample grid."""
    num_validation: int = 1000
    """Losses that a validation averages, of the held-out images in turn, each with a timestep and
    noise of its own that are the same every time."""
    sample_steps: int = 25
    """DDIM steps of a sample grid."""
    resume: str = "never"
    """`auto`: go on from the newest sound checkpoint in output_dir, if there is one; a checkpoint
    folder: go on from that; `never`: output_dir must not hold a run."""
    override: bool = False
    """Let a resumed run change settings that would make it another run; each change is said."""
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Precision of the network's arithmetic. auto: bf16 where the device is fast at it."""
    compile: bool = False
    """torch.compile the network: minutes at the start, for a faster long run on a GPU."""
    sharding: Literal["none", "fsdp"] = "none"
    """fsdp: each process keeps a part of weights, averages and optimiser, for networks that outgrow
    one GPU. none: each keeps them whole."""
    time_limit: float | None = None
    """Minutes after which the run ends as if its steps were done."""
    keep_checkpoints: int = 2
    """Newest whole checkpoints kept; older ones are removed."""
    keep_every: int | None = None
    """Of the older ones, those of a step that this divides are kept too. None: none."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """A loss or gradient that is not finite ends the run, or its update is left out and counted."""
    tracker: Literal["tensorboard", "wandb", "trackio", "none"] = "tensorboard"
    """Where curves and sample grids go, besides metrics.jsonl and samples/."""

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
            "or null: only what is saved can be kept",
        )
        with_shards = {
            "optim.optimizer": (self.optim.optimizer, "muon", "adam"),
            "compile": (self.compile, True, False),
            "mixed_precision": (self.mixed_precision, "fp16", "bf16"),
        }
        for name, (value, impossible, way_out) in with_shards.items():
            require(
                self.sharding == "none" or value != impossible,
                f"sharding={self.sharding} cannot be had with {name}={value}; use {way_out}",
            )
        require(self.seed >= 0, f"seed={self.seed} must be 0 or more")
        for name in ("sample_every", "validate_every"):
            require(getattr(self, name) >= 0, f"{name}={getattr(self, name)} must be 0 or more")
        require(
            self.micro_batch_size is None or self.micro_batch_size >= 1,
            f"micro_batch_size={self.micro_batch_size} must be 1 or more",
        )
