"""A network spread over two processes (FSDP 2) trains as one that each of them holds whole."""

import os
from functools import cache, partial

import pytest
from torch.distributed.tensor import DTensor

import training.train
from ddpm_sa.data.config import DataConfig
from tests.support.runs import (
    STEMS,
    arguments,
    assert_same_gradient,
    checkpoint,
    metrics,
    same_bits,
)
from tests.support.workers import Workers
from training.config import TrainConfig
from training.distributed.fsdp import take_over_accelerate_fsdp

STEPS = 4
CHANGES = {
    "steps": STEPS,
    "log_every": 1,
    "save_every": 1,
    "keep_checkpoints": STEPS,
    "micro_batch_size": 2,
    "optim__warmup_steps": 0,
    "optim__lr": 2e-4,
    "model__unet": None,
    "data__validation": 0.25,
    "validate_every": 2,
    "num_validation": 5,
    "sample_every": 4,
    "num_samples": 3,
    "ema__keep_raw": "true",
}


@pytest.fixture(scope="module")
def train(pictures, saved_network, tmp_path_factory):
    """Train over so many processes, spread or not, from the start or from another's checkpoint."""
    folder = tmp_path_factory.mktemp("shards")

    @cache
    def trained(sharding, processes=2, resume="never", before=None):
        origin = resume if resume == "never" else resume.parts[-3]
        run = folder / f"{sharding}-{processes}-{origin}-{before is not None}"
        argv = arguments(pictures, run, **CHANGES, model__init_from=saved_network, resume=resume)
        log, before = run.with_suffix(".log"), before or partial(weigh, run.with_suffix(".held"))
        with Workers([*argv, "--sharding", sharding], processes, log, before) as workers:
            assert workers.wait() == [0] * processes, workers.printed()
        return run

    return trained


def weigh(path, rank):
    """Have a process write down how many numbers it holds of the weights and their average."""
    make_averages = training.train.Averages

    def weighed(network, config):
        averages = make_averages(network, config)
        held = [*network.parameters(), *averages.main.averages.values()]
        parts = [each.to_local() if isinstance(each, DTensor) else each for each in held]
        with path.open("a") as file:
            file.write(f"{sum(part.numel() for part in parts)}\n")
        return averages

    training.train.Averages = weighed


def assert_alike(one, other):
    """To rounding: the last lines of one run are those of another, and so are its weights."""
    records = metrics(other)
    for record, same in zip(metrics(one)[-len(records) :], records, strict=True):
        assert record.keys() == same.keys()
        for name in record.keys() & {"loss", "grad_norm", "validation_loss", "lr", "step"}:
            assert same[name] == pytest.approx(record[name], rel=1e-5), name
    for stem in STEMS[:3]:
        others = checkpoint(other, STEPS, stem)
        for name, value in checkpoint(one, STEPS, stem).items():
            # Its gradient is rounding alone, which Adam scales up to the learning rate.
            if "to_k.bias" not in name:
                assert (others[name] - value).abs().max() <= 1e-5, (stem, name)


def halfway(run):
    return run / "checkpoints" / f"step-{STEPS // 2:08d}"


@pytest.mark.slow
def test_spread_network_trains_as_a_whole_one(train):
    assert_alike(train("none"), train("fsdp"))
    assert_same_gradient(train("none"), train("fsdp"))


@pytest.mark.slow
def test_each_process_holds_its_part_alone(train):
    whole, parts = (
        [int(line) for line in train(sharding).with_suffix(".held").read_text().split()]
        for sharding in ("none", "fsdp")
    )
    assert whole[0] == whole[1] == sum(parts)
    # A tensor of three rows is parted as two and one.
    assert max(parts) < 0.51 * whole[0]


@pytest.mark.slow
def test_spread_network_leaves_the_same_files(train):
    """Whole tensors of the same names, shapes and types, and the models that they make."""
    one, other = train("none"), train("fsdp")
    names = [{str(path.relative_to(run)) for path in run.rglob("*")} for run in (one, other)]
    assert names[0] == names[1]
    for stem in STEMS:
        kinds = [
            {name: (value.shape, value.dtype) for name, value in checkpoint(run, 3, stem).items()}
            for run in (one, other)
        ]
        assert kinds[0] == kinds[1]


@pytest.mark.slow
def test_spread_run_goes_on_bit_for_bit(train):
    straight = train("fsdp")
    resumed = train("fsdp", resume=halfway(straight))
    for stem in STEMS:
        assert same_bits(checkpoint(straight, STEPS, stem), checkpoint(resumed, STEPS, stem)), stem
    assert metrics(resumed) == metrics(straight)[-len(metrics(resumed)) :]


@pytest.mark.slow
@pytest.mark.parametrize(("before", "now", "processes"), [("fsdp", "none", 1), ("none", "fsdp", 2)])
def test_run_goes_on_spread_otherwise(train, before, now, processes):
    resumed = train(now, processes, resume=halfway(train(before)))
    assert_alike(train("none"), resumed)
    printed = resumed.with_suffix(".log").read_text()
    assert f"sharding: {before} before, {now} now" in printed


@pytest.mark.slow
def test_accelerates_configuration_spreads_too(train):
    asked = train("none", before=ask_accelerate)
    assert "sharding: fsdp" in (asked / "config.yaml").read_text()
    for stem in STEMS:
        one, other = (checkpoint(run, STEPS, stem) for run in (asked, train("fsdp")))
        assert same_bits(one, other), stem


def ask_accelerate(rank):
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixed_precision": "fp16"}, "mixed_precision=fp16; use bf16"),
        ({"compile": True}, "compile=True; use False"),
    ],
)
def test_what_cannot_be_spread_is_refused(settings, message):
    with pytest.raises(ValueError, match=f"sharding=fsdp does not support {message}"):
        TrainConfig(output_dir="run", data=DataConfig(source="x"), sharding="fsdp", **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "fsdp_version: 1; set it to 2"),
        ({"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params: true; set"),
    ],
)
def test_what_accelerate_asks_for_beyond_it_is_refused(monkeypatch, settings, message):
    for name, value in ({"ACCELERATE_USE_FSDP": "true"} | settings).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        take_over_accelerate_fsdp()
