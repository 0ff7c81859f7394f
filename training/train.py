"""Train a U-Net: `accelerate launch training/train.py --config training/configs/mnist.yaml`.

`--help` lists all settings.
"""

import sys
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import training as training  # sets what torch reads when it is loaded
from ddpm_sa.cli import parse, run_program
from ddpm_sa.data.load import open_images, with_condition
from ddpm_sa.distributed import leave
from ddpm_sa.errors import advise_out_of_memory
from ddpm_sa.settings.words import given_flags
from training.checkpoint.resume import find_checkpoint, previous_micro_batch
from training.checkpoint.run_folder import RunFolder, hold_run_folder, make_ema_pipeline
from training.checkpoint.training_state import TrainingState
from training.config import TrainConfig
from training.distributed.accelerator import make_accelerator, make_layout, resolve_settings
from training.distributed.interrupt import StopRequest
from training.ema import Averages
from training.fine_tuning import follow_saved_model
from training.loop import learning_rate, make_batches, train_steps
from training.memory.fit import check_counts, fit
from training.network import build_network, height_and_width
from training.objective import make_loss, prepare
from training.reporting.log import RunLog
from training.reporting.periodic import PeriodicEvaluation
from training.reporting.startup import startup_report
from training.scheduler import make_scheduler


@advise_out_of_memory(
    "continue from the last checkpoint with --resume auto and --micro_batch_size auto or a smaller "
    "number, or --model.gradient_checkpointing true; memory.md in the documentation has more"
)
def main(argv: Sequence[str] | None = None) -> None:
    """Train with the settings of the command line, then leave the process group."""
    config = resolve_settings(parse(TrainConfig, argv, __doc__))
    with hold_run_folder(config.output_dir):
        train(config, given_flags(argv))
    leave()


def train(config: TrainConfig, flags: Collection[str] = ()) -> None:
    """Train with this configuration; the model is written to output_dir/model at the end.

    Settings are checked before anything is written.

    Args:
        config: From `resolve_settings`; its folder is held.
        flags: The settings given on the command line, which a model to fine-tune must not
            contradict.
    """
    config, tuning = follow_saved_model(config, flags)
    layout = make_layout(config)
    check_counts(config, layout)
    images = with_condition(open_images(config.data, config.seed), config.condition)
    scheduler = make_scheduler(config)
    loss = make_loss(scheduler, config.objective, images.format)
    checkpoint, notes = find_checkpoint(config, images)
    build = partial(
        build_network, config.model, images, config.seed, config.objective.learned_variance
    )
    config, layout, memory = fit(config, layout, build, previous_micro_batch(checkpoint))
    network = build()
    images = images.pad_to(*height_and_width(network.config["sample_size"]))

    accelerator = make_accelerator(config, layout)
    prepared, optimizer = prepare(accelerator, network, config)
    averages = Averages(network, config.ema)
    pipeline = make_ema_pipeline(network, averages.main, scheduler, images)
    training_state = TrainingState(network, averages, optimizer)
    run = RunFolder(accelerator, config, images, training_state, pipeline)
    start, log_state = run.restore(checkpoint)
    report = startup_report(config, layout, images, network, memory, start)
    accelerator.print(*tuning, *notes, report, sep="\n")

    batches = make_batches(config, images, layout, start)
    log, stop = RunLog(accelerator, config, log_state, start), StopRequest(config.time_limit)
    evaluate = PeriodicEvaluation(
        accelerator, config, layout, images, pipeline, averages.main, loss, log
    )
    steps = train_steps(
        accelerator,
        prepared,
        optimizer,
        loss,
        batches,
        lr_at=partial(learning_rate, config.optim.for_steps(config.steps)),
        grad_clip=config.optim.grad_clip,
        stop_requested=stop,
        on_nonfinite=config.on_nonfinite,
    )
    with log, stop:
        for progress in steps:
            last = progress.stop or progress.step == config.steps
            if progress.skipped is None:
                averages.update(progress.step - 1)
            log.update(progress)
            evaluate(progress.step)
            if last or progress.step % config.save_every == 0:
                run.save(progress.step, log.state())
            if last:
                break
        run.finish(evaluate.final_samples())
    accelerator.print(log.summary(stop.reason))


if __name__ == "__main__":
    run_program(main)
