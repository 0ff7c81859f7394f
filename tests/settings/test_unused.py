"""A flag that has no effect is refused; the same value in a file is not."""

from pathlib import Path

import pytest
import yaml

from ddpm_sa.cli import parse
from ddpm_sa.settings.unused import unused_settings
from ddpm_sa.settings.words import given_flags
from tests.settings.test_ranges import NEEDED, settings_of

EDITS = {
    "sdedit": "--image a.png",
    "interpolate": "--image a.png b.png",
    "inpaint": "--image a.png --mask m.png",
    "variations": "",
    "progressive": "",
    "reconstruct": "--image a.png",
}
SAMPLER = "--seed 1|--scheduler ddpm|--scheduler_options.eta 1|--guidance.kind pag|"
SAMPLER += "--cache_interval 2"
COLUMNS = "--data.split test|--data.image_column a|--data.label_column b"

# (program, mode): the flags that have an effect there, and those that have none.
MODES = {
    ("edit", "sdedit"): ("--strength 1|" + SAMPLER, "--level 1|--count 2|--index 1|--repeats 2"),
    ("edit", "interpolate"): (
        "--level 1|--count 2|" + SAMPLER,
        "--strength 1|--index 1|--repeats 2",
    ),
    ("edit", "inpaint"): ("--repeats 2|" + SAMPLER, "--strength 1|--level 1|--count 2|--index 1"),
    ("edit", "variations"): (
        "--level 1|--count 2|--index 1|" + SAMPLER,
        "--strength 1|--repeats 2",
    ),
    ("edit", "progressive"): (
        "--count 2|--index 1|" + SAMPLER,
        "--strength 1|--level 1|--repeats 2",
    ),
    ("edit", "reconstruct"): (
        "--steps 3|--class_label 1|--scheduler ddim",
        "--strength 1|--level 1|--count 2|--index 1|--repeats 2|" + SAMPLER,
    ),
    **{
        (program, mode): (used, unused)
        for program in ("sample", "edit", "evaluate")
        for mode, used, unused in [
            (
                "",
                "",
                "--guidance.scale 2|--guidance.interval 200:800|--guidance.rescale 0.5|"
                "--guidance.sigma 1|--guidance.layers a|--guidance.null_class 1|--guidance.model b",
            ),
            (
                "--guidance.kind cfg",
                "--guidance.scale 2|--guidance.null_class 1|--guidance.rescale 0.5",
                "--guidance.sigma 1|--guidance.layers a|--guidance.model b",
            ),
            (
                "--guidance.kind pag",
                "--guidance.interval 200:800|--guidance.layers a b",
                "--guidance.sigma 1|--guidance.null_class 1|--guidance.model b",
            ),
            *(
                (
                    f"--guidance.kind {kind}",
                    "--guidance.sigma 1|--guidance.layers a",
                    "--guidance.null_class 1|--guidance.model b",
                )
                for kind in ("sag", "seg")
            ),
            (
                "--guidance.kind auto",
                "--guidance.model b",
                "--guidance.sigma 1|--guidance.layers a|--guidance.null_class 1",
            ),
        ]
    },
    ("restore", "--task superres"): (
        "--factor 2|--downsampling bicubic|--pigdm_step score|--truth a.png|--class_label 1|"
        + SAMPLER,
        "--blur 2|--mask m.png|--acceleration 2|--operator a:b|--fit crop|--step_size 2|"
        "--prior_weight 2|--zeta 0|--repeats 2",
    ),
    ("restore", "--task superres --degrade true"): ("--fit crop", "--truth [a.png]"),
    ("restore", "--task deblur --method dps"): ("--blur 2|--step_size 2", "--factor 2|--zeta 0"),
    ("restore", "--task mri --method diffpir"): (
        "--acceleration 2|--mask m.png|--prior_weight 2|--zeta null",
        "--pigdm_step score|--step_size 2",
    ),
    ("restore", "--task mri --mask m.png"): ("--fit crop", "--acceleration 2"),
    ("restore", "--task inpaint --mask m.png --method repaint"): ("--repeats 2", "--zeta 0"),
    ("restore", "--task custom --operator a:b --method ddnm"): ("--sigma 1", "--pigdm_step score"),
    ("evaluate", "--data x"): ("--fit pad|--split test|--seed 1|--num_images 5", ""),
    ("evaluate", "--seed 0"): ("--validation 0.1|--split test", "--fit pad"),
    ("evaluate samples", "--samples a"): (
        "--nearest 5|--features x|--batch_size 2|--device cpu",
        "--steps 3|--num_images 5|--likelihood 5|--losses 5|--weights raw|--dtype bfloat16|"
        + SAMPLER,
    ),
    ("paper", "--data x"): ("--fit pad|--split test|--steps 2|--likelihood 2|--num_images 2", ""),
    ("paper", "--experiments table1"): ("--features x|--steps 2|--split test", "--fit pad"),
    ("paper", "--experiments table4"): (
        "--likelihood 2|--batch_size 2|--data x|--validation x",
        "--steps 2|--num_images 2|--features x",
    ),
    ("paper", "--experiments figure6 figure7"): (
        "--steps 2|--seed 1",
        "--data x|--validation x|--fit pad|--split a|--num_images 2|--likelihood 2|--batch_size 2|"
        "--features x",
    ),
    ("train", ""): (
        "--data.memory 1|--data.cache_dir x|--data.split test|--schedule.beta_end 0.1",
        "--num_validation 5|--validate_every 5|--override true|--data.shuffle_buffer 9|"
        "--data.num_classes 4|--data.label_column b",
    ),
    ("train", "--data.validation 0.1"): ("--num_validation 5|--validate_every 5", ""),
    ("train", "--data.validation 0.1 --validate_every 0"): ("", "--num_validation 5"),
    ("train", "--resume auto"): ("--override true", ""),
    ("train", "--schedule.kind cosine"): (
        "--schedule.num_timesteps 10",
        "--schedule.beta_start 0.01|--schedule.beta_end 0.1",
    ),
    ("train", "--model.init_from x"): ("--model.dropout 0.1", "--model.preset mnist"),
    ("train", "--data.streaming true"): (
        "--data.shuffle_buffer 9",
        "--data.memory 1|--data.cache_dir x",
    ),
    ("train", "--data.streaming true --data.validation test"): (
        "--data.memory 1|--data.cache_dir x",  # held-out images are not streamed
        "",
    ),
    ("train", "--data.source x.npy --data.validation y.parquet"): ("--data.image_column a", ""),
    ("train", "--data.class_conditional true"): (
        "--data.num_classes 4|--data.label_column b|--data.label_dropout 0.1",
        "",
    ),
    ("train", "--data.source mnist5k"): ("--data.size 28", COLUMNS),
    ("train", "--data.source x.npy"): ("--data.value_range 0 1", COLUMNS),
}
CASES = [
    (program, mode, flag, used)
    for (program, mode), columns in MODES.items()
    for used, flags in zip((True, False), columns, strict=True)
    for flag in filter(None, flags.split("|"))
]


def line(program: str, mode: str, flag: str) -> tuple[type, list[str]]:
    if program == "evaluate samples":
        return settings_of("evaluate"), ["--output_dir", "x", *mode.split(), *flag.split()]
    if mode in EDITS:
        mode = f"--edit {mode} {EDITS[mode]}"
    return settings_of(program), [*NEEDED[program], *mode.split(), *flag.split()]


@pytest.mark.parametrize(("program", "mode", "flag", "used"), CASES)
def test_a_flag_without_effect_in_a_mode_is_refused_there(
    program: str, mode: str, flag: str, used: bool
) -> None:
    settings, words = line(program, mode, flag)
    if used:
        parse(settings, words)
        return
    with pytest.raises(ValueError, match="has no effect: ") as refusal:
        parse(settings, words)
    name = flag.split()[0].removesuffix(".eta").removesuffix(".kind")
    assert str(refusal.value).startswith(name)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("program", "mode", "flag", "used"), [c for c in CASES if not c[3]])
def test_the_same_value_in_a_file_is_left_alone(
    program: str, mode: str, flag: str, used: bool, tmp_path: Path
) -> None:
    name, *values = flag.removeprefix("--").split()
    content = yaml.safe_load(values[0]) if len(values) == 1 else values
    if name == "guidance.layers":
        content = values
    for part in reversed(name.split(".")):
        content = {part: content}
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(content))
    settings, words = line(program, mode, f"--config {file}")
    parse(settings, words)


def test_names_of_unused_settings_are_flags() -> None:
    for (program, mode), _ in MODES.items():
        settings, words = line(program, mode, "")
        read = parse(settings, words)
        for name, reason in unused_settings(read):
            value = read
            for part in name.split("."):
                value = getattr(value, part)  # fails if there is none of that name
            assert reason


def test_given_flags_are_those_of_the_command_line() -> None:
    words = ["--a", "1", "--b.c=2", "--list", "x", "y", "--more+", "3", "z", "-h"]
    assert given_flags(words) == {"a", "b.c", "list", "more"}
    assert given_flags(["--optim", "{lr: 1, eps: 2}"]) == {"optim", "optim.lr", "optim.eps"}
    assert given_flags([]) == frozenset()
