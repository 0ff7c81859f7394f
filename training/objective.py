"""Loss and optimiser of a run, and the network prepared for training."""

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from torch import Tensor, nn

from ddpm_sa.diffusion.loss import denoising_loss, timestep_weights
from ddpm_sa.diffusion.prediction import prediction
from ddpm_sa.diffusion.schedule import NoiseSchedule
from ddpm_sa.errors import UserError
from ddpm_sa.image_format import ImageFormat
from ddpm_sa.models.unet import UNet
from training.config import ObjectiveConfig, OptimConfig, TrainConfig
from training.distributed.fsdp import shard
from training.loop import Loss, MicroBatch
from training.muon import Muon
from training.network import memory_format


def make_loss(scheduler: DDPMScheduler, config: ObjectiveConfig, image_format: ImageFormat) -> Loss:
    """Make the function that computes the loss of each image of a micro-batch.

    Raises:
        ValueError: If the loss is not defined for this schedule or these images.
    """
    if config.learned_variance and image_format.bit_depth == 32:
        raise UserError(
            "objective.learned_variance needs integer pixel values for its likelihood, but these "
            "are floats; set it to false, or save the images with 16 bits"
        )
    low, high = image_format.value_range
    levels = round(high - low) + 1
    schedule = NoiseSchedule.from_scheduler(scheduler)
    meaning = prediction(config.prediction_type)
    weights = timestep_weights(schedule, meaning, config.weighting)

    def loss_fn(network: nn.Module, batch: MicroBatch) -> Tensor:
        return denoising_loss(
            network,
            schedule,
            meaning,
            batch.x_0,
            batch.eps,
            batch.t,
            condition=batch.condition,
            weights=weights,
            learned_variance=config.learned_variance,
            levels=levels,
        )

    return loss_fn


def make_optimizer(network: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Make AdamW, which equals Adam if the weight decay is 0, or Muon."""
    if config.optimizer == "muon":
        return Muon(network, config.lr, config.betas, config.eps, config.weight_decay)
    return torch.optim.AdamW(
        network.parameters(),
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def prepare(
    accelerator: Accelerator, network: UNet, config: TrainConfig
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Prepare network and optimiser for training: device, processes, compilation."""
    if config.sharding == "fsdp" and accelerator.num_processes > 1:
        shard(network, accelerator)
        # Evaluation mode, since otherwise accelerate would replicate the network with DDP.
        prepared = accelerator.prepare_model(network, evaluation_mode=True)
        return prepared, accelerator.prepare_optimizer(make_optimizer(network, config.optim))
    order = memory_format(accelerator.device, config.compile)
    network.to(memory_format=order)  # pyright: ignore[reportCallIssue]
    if config.compile:
        network.compile(dynamic=False)
    return accelerator.prepare(network, make_optimizer(network, config.optim))
