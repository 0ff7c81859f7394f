"""Every number that a program can be given has a range, and a number outside it is refused."""

import dataclasses
import importlib
import math
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import yaml

from ddpm_sa.__main__ import PROGRAMS
from ddpm_sa.cli import parse
from ddpm_sa.data.config import DataConfig
from ddpm_sa.errors import UserError
from ddpm_sa.settings.ranges import LARGEST, Range, check_ranges, field_ranges
from training.config import TrainConfig

# What each program must be given.
NEEDED = {
    "train": ["--output_dir", "x", "--data.source", "x"],
    "sample": ["--model", "x", "--output_dir", "x"],
    "edit": ["--model", "x", "--output_dir", "x", "--edit", "progressive"],
    "restore": ["--model", "x", "--output_dir", "x", "--task", "deblur", "--image", "x"],
    "evaluate": ["--model", "x", "--output_dir", "x"],
    "attention": ["--model", "x", "--output_dir", "x"],
    "ablation": ["--model", "x", "--output_dir", "x"],
    "app": ["--model", "x"],
    "convert": ["--source", "x", "--output_dir", "x"],
    "export": ["--model", "x", "--output_dir", "x", "--format", "onnx"],
    "paper": ["--model", "x", "--output_dir", "x"],
}
HUGE = 10**20


def test_numbers_of_numpy_have_ranges_too() -> None:
    for value in (np.int64(-1), np.float32(-1), np.float64("nan")):
        with pytest.raises(UserError, match=r"^data\.num_workers="):
            dataclasses.replace(DataConfig(source="x"), num_workers=value)


def settings_of(program: str) -> type:
    module = importlib.import_module(PROGRAMS[program][0])
    return TrainConfig if program == "train" else module.Settings


def fields_of(settings: type, prefix: str = "") -> list[tuple[type, str, str, Any]]:
    """The class, the name, the flag and the type of each field, nested ones too."""
    found = []
    for name, hint in get_type_hints(settings, include_extras=True).items():
        if dataclasses.is_dataclass(hint):
            found += fields_of(hint, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            found.append((settings, name, f"{prefix}{name}", hint))
    return found


def leaves(hint: Any, allowed: Range | None = None) -> list[tuple[Any, Range | None]]:
    """The types that values of a type are made of, each with its range."""
    if get_origin(hint) is dict:  # arguments of another class, which checks them
        return []
    metadata = getattr(hint, "__metadata__", ())
    allowed = next((item for item in metadata if isinstance(item, Range)), allowed)
    inner = [hint.__origin__] if metadata else get_args(hint)
    if not inner or get_origin(hint) is type:
        return [(hint, allowed)]
    return [leaf for part in inner for leaf in leaves(part, allowed)]


ALL = [(program, *field) for program in NEEDED for field in fields_of(settings_of(program))]
NUMERIC = [field for field in ALL if any(kind in (int, float) for kind, _ in leaves(field[-1]))]


def test_every_program_is_here() -> None:
    assert NEEDED.keys() == PROGRAMS.keys()
    assert len(NUMERIC) > 60


@pytest.mark.parametrize(("program", "settings", "name", "flag", "hint"), NUMERIC)
def test_every_number_has_a_range(
    program: str, settings: type, name: str, flag: str, hint: Any
) -> None:
    ranges = {allowed for kind, allowed in leaves(hint) if kind in (int, float)}
    assert len(ranges) == 1, f"{program} --{flag}: {hint}"
    assert None not in ranges, f"{program} --{flag} has no range: {hint}"
    assert field_ranges(settings)[name][0] in ranges


def outside(allowed: Range, whole: bool) -> list[float]:
    """Numbers that the range excludes."""
    if whole:
        return [-HUGE, allowed.least - 1, min(HUGE, allowed.most + 1)]  # type: ignore[list-item]
    step = 1e-3
    bounds = [allowed.least - step, allowed.most + step, allowed.above, allowed.below]
    infinite = [-math.inf] if allowed.infinite else [math.inf, -math.inf]
    return [*filter(math.isfinite, bounds), *infinite, math.nan]


@pytest.mark.parametrize(("program", "settings", "name", "flag", "hint"), NUMERIC)
def test_a_number_outside_its_range_is_refused_in_a_line_with_flag_value_and_rule(
    program: str, settings: type, name: str, flag: str, hint: Any
) -> None:
    allowed, _ = field_ranges(settings)[name]
    whole = all(kind is not float for kind, _ in leaves(hint))
    kinds = [get_origin(arm) for arm in (hint, *get_args(hint))]
    for number in outside(allowed, whole):
        text = yaml.safe_dump(number).split("\n")[0]
        value = f"[{text}]" if list in kinds else f"[{text}, {text}]" if tuple in kinds else text
        if flag == "query":
            value = f"[[{text}, {text}]]"
        if flag in ("class_labels", "class_label"):  # a flag is a string; a list may hold numbers
            continue
        with pytest.raises(ValueError, match="must be") as refusal:
            parse(settings_of(program), [*NEEDED[program], f"--{flag}={value}"])
        message = str(refusal.value)
        assert message.startswith(f"{flag}="), message
        assert str(number).split("e")[0] in message
        assert "\n" not in message


@pytest.mark.parametrize("value", [-1, HUGE, [1, -2]])
def test_classes_given_as_numbers_in_python_have_the_range_too(value: Any) -> None:
    with pytest.raises(ValueError, match=r"class_labels=.* must be at "):
        settings_of("sample")(model="x", output_dir="x", class_labels=value)


def test_the_rule_is_said() -> None:
    for allowed, number, rule in [
        (Range(least=1, most=LARGEST), 0, "at least 1"),
        (Range(least=1, most=LARGEST), HUGE, "at most 2^63 - 1"),
        (Range(above=0, most=1), 0, "above 0 and at most 1"),
        (Range(above=0), math.inf, "finite, above 0"),
        (Range(), math.nan, "finite"),
    ]:
        assert number not in allowed
        assert allowed.rule_for(number) == rule
    assert math.inf in Range(above=0, infinite=True)
    assert math.nan not in Range(above=0, infinite=True)


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("time_limit", "-1", "time_limit=-1.0 must be at least 0, or null"),
        ("data.memory", "-1", "data.memory=-1.0 must be at least 0"),
        ("optim.betas", "[2,3]", r"optim.betas=\(2.0, 3.0\): 2.0 must be at least 0 and below 1"),
        ("seed", "99999999999999999999", "seed=99999999999999999999 must be at most 2"),
        ("data.validation", "2", "data.validation=2.* must be above 0 and below 1, a split's name"),
        ("data.value_range", "[0, .inf]", r"data.value_range=.*: inf must be finite"),
    ],
)
def test_what_once_got_through_is_refused(flag: str, value: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(TrainConfig, [*NEEDED["train"], f"--{flag}={value}"])


def test_lists_are_checked_item_by_item_and_booleans_are_no_numbers() -> None:
    check_ranges(DataConfig(source="x", size="9x9", flip=True))
    with pytest.raises(ValueError, match=r"query=\[\(1, 2\), \(3, -4\)\]: -4 must be at least 0"):
        settings_of("attention")(model="x", output_dir="x", query=[(1, 2), (3, -4)])


def test_help_shows_the_range(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        parse(TrainConfig, ["--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert "(type: int (at least 1), default: 128)" in words
    assert "type: Optional[float (at least 0)]" in words
    assert "Annotated" not in words
