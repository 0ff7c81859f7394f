"""Lists are typed as people type them."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from ddpm_sa.cli import parse

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optim:
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates."""
    more: list[float] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    image: list[str] = dataclasses.field(default_factory=list)
    """Image files."""
    levels: list[int] | None = None
    query: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    parts: list[Literal["a", "b"]] = dataclasses.field(default_factory=list)
    labels: str | int | list[str | int] | None = None
    unet: dict[str, int | float | list[int]] = dataclasses.field(default_factory=dict)
    optim: Optim = Optim()
    low: float = 0.0
    steps: int = 1


def read(line: str) -> dict:
    """What a command line changes."""
    settings = parse(Settings, line.split())
    values = dataclasses.asdict(settings) | dataclasses.asdict(settings.optim)
    defaults = dataclasses.asdict(Settings()) | dataclasses.asdict(Optim())
    del values["optim"]
    return {name: value for name, value in values.items() if value != defaults[name]}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--image a.png", {"image": ["a.png"]}),
        ("--image a.png b.png --steps 3", {"image": ["a.png", "b.png"], "steps": 3}),
        ("--image a.png --steps 3 --image=b.png c.png", {"image": ["a.png", "b.png", "c.png"]}),
        ("--image [a.png,b.png]", {"image": ["a.png", "b.png"]}),
        ("--image=[a.png] --image [b.png]", {"image": ["b.png"]}),  # a later list replaces
        (
            "--image no null 1e3 [1].png a,b.png",
            {"image": ["no", "null", "1e3", "[1].png", "a,b.png"]},
        ),
        ("--image=--odd.png", {"image": ["--odd.png"]}),
        ("--levels 16", {"levels": [16]}),
        ("--levels 16 8", {"levels": [16, 8]}),
        ("--levels 16 -8", {"levels": [16, -8]}),
        ("--levels 16 --levels null", None),
        ("--levels null", {}),
        ("--query 12,16 20,8 --query=1,2", {"query": [(12, 16), (20, 8), (1, 2)]}),
        ("--query [[1,2],[3,4]]", {"query": [(1, 2), (3, 4)]}),
        ("--query -1,2", {"query": [(-1, 2)]}),
        ("--parts a b", {"parts": ["a", "b"]}),
        ("--labels cat", {"labels": "cat"}),
        ("--labels cat dog", {"labels": ["cat", "dog"]}),
        ("--labels 3", {"labels": "3"}),
        ("--labels 007", {"labels": "007"}),
        ("--unet.blocks 8 16", {"unet": {"blocks": [8, 16]}}),
        ("--unet.depth 2", {"unet": {"depth": 2}}),
        ("--unet.eta -1e-3", {"unet": {"eta": -1e-3}}),
        ("--optim.betas 0.5 0.6", {"betas": (0.5, 0.6)}),
        ("--optim.betas 0.5,0.6", {"betas": (0.5, 0.6)}),
        ("--optim.betas 0.5 0.6 --optim.betas 0.7 0.8", {"betas": (0.7, 0.8)}),
        ("--optim.more 0.9 -.5", {"more": [0.9, -0.5]}),
        ("--optim.more [0.9]", {"more": [0.9]}),
        ("--low -1e-3 --steps -2", {"low": -1e-3, "steps": -2}),
    ],
)
def test_lists_are_typed_word_by_word_or_in_brackets(line: str, expected: dict | None) -> None:
    steps = {"steps": 3} if "--steps 3" in line else {}
    if expected is None:
        with pytest.raises(ValueError, match="null"):
            read(line)
    else:
        assert read(line) == expected | steps


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--image", "--image needs a value"),
        ("--image --steps 3", "--image needs a value"),
        ("--image [a.png] --image b.png", "--image takes a list in brackets or one value after"),
        ("--image a.png --image [b.png]", "--image takes a list in brackets or one value after"),
        ("--levels 16 many", "levels.*many"),
        ("--query 3", "--query 3: each value is 2 numbers with commas, as in 12,16"),
        ("--query 1,2 3,4,5", "--query 3,4,5: each value is 2 numbers"),
        ("--optim.betas 0.5", "betas.*2 elements"),
        ("--parts c", "parts.*c"),
        ("--steps 3 4", "4"),
        ("a.png --steps 3", "a.png"),
    ],
)
def test_a_list_that_cannot_be_read_is_one_line_that_names_the_flag(
    line: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        parse(Settings, line.split())
    assert "\n" not in str(refusal.value)


def test_a_flag_replaces_the_list_of_a_file_and_the_file_is_read_as_yaml(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("image: [a.png, b.png]\nlabels: [2, cat]\noptim:\n  betas: [0.1, 0.2]\n")
    config = f"--config {file}"
    expected = {"image": ["a.png", "b.png"], "labels": [2, "cat"], "betas": (0.1, 0.2)}
    assert read(config) == expected
    assert read(f"{config} --image c.png") == expected | {"image": ["c.png"]}
    assert read(f"--image c.png {config}") == expected | {"image": ["c.png"]}


def test_help_shows_how_a_list_is_typed(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        parse(Settings, ["--help"])
    words = " ".join(capsys.readouterr().out.split())
    for shown in (
        "--image VALUE [VALUE ...] Image files.",
        "--query VALUE,VALUE [VALUE,VALUE ...] (type",
        "--optim.betas VALUE VALUE Decay rates.",
        "--steps STEPS",
    ):
        assert shown in words
    assert "--image+" not in words


def test_the_shell_completes_flags_after_a_list(tmp_path: Path) -> None:
    line = "edit.py --image a.png b.png --streng"
    environment = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "completions"),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
        "PATH": "",
        "HOME": str(tmp_path),
    }
    program = [sys.executable, str(ROOT / "sampling" / "edit.py")]
    subprocess.run(program, env=environment, check=False, capture_output=True, timeout=120)
    assert (tmp_path / "completions").read_text().split() == ["--strength"]
