import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ddpm_sa import __version__
from ddpm_sa.cli import parse, run_program
from ddpm_sa.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    source: str = "digits"
    """Where the images come from."""
    size: int = 32

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError(f"size={self.size} must be 1 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    output_dir: str
    steps: int = 100
    mixed_precision: str = "no"
    data: Data = Data()

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"steps={self.steps} must be 1 or more")


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "settings.yaml"
    path.write_text("output_dir: runs/a\nsteps: 7\nmixed_precision: 'no'\ndata:\n  size: 16\n")
    return str(path)


def test_every_field_is_a_flag_nested_ones_with_a_dot() -> None:
    argv = ["--output_dir", "runs/b", "--steps=5", "--data.size", "8", "--mixed_precision", "bf16"]
    expected = Settings(output_dir="runs/b", steps=5, mixed_precision="bf16", data=Data(size=8))
    assert parse(Settings, argv) == expected


@pytest.mark.parametrize("config", ["--config {}", "--config={}"])
def test_flags_override_the_file_wherever_they_are_typed(file: str, config: str) -> None:
    argv = ["--steps", "9", *config.format(file).split(), "--data.source", "faces"]
    expected = Settings(output_dir="runs/a", steps=9, data=Data(source="faces", size=16))
    assert parse(Settings, argv) == expected


def test_a_file_is_read_and_later_flags_win(file: str) -> None:
    expected = Settings(output_dir="runs/a", steps=7, data=Data(size=16))
    assert parse(Settings, ["--config", file]) == expected
    changed = parse(Settings, ["--config", file, "--steps", "9", "--data.source", "faces"])
    assert changed == Settings(output_dir="runs/a", steps=9, data=Data(source="faces", size=16))


def test_a_line_that_has_been_read_can_be_read_from_a_file_again(tmp_path: Path) -> None:
    settings = Settings(output_dir="runs/c", steps=3, data=Data(size=4))
    path = tmp_path / "again.yaml"
    fields = dataclasses.asdict(settings)
    path.write_text("\n".join(f"{key}: {value!r}" for key, value in fields.items()))
    assert parse(Settings, ["--config", str(path)]) == settings


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--step", "3"], r"--step\b"),  # no abbreviations: a new flag would change their meaning
        (["--data.sise", "3"], r"data\.sise"),
        (["--steps", "many"], r"steps.*many"),
        (["--steps", "0"], r"steps=0 must be 1 or more"),
        (["--data.size", "0"], r"size=0 must be 1 or more"),
        (["--config", "nowhere.yaml"], r"nowhere\.yaml"),
    ],
    ids=str,
)
def test_a_wrong_line_is_one_error_of_one_line(argv: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        parse(Settings, ["--output_dir", "runs/a", *argv])
    assert "\n" not in str(refusal.value)


def test_an_unknown_name_in_a_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("output_dir: runs/a\nstepps: 7\n")
    with pytest.raises(ValueError, match="stepps"):
        parse(Settings, ["--config", str(path)])


def test_a_missing_required_setting_is_named() -> None:
    with pytest.raises(ValueError, match="output_dir"):
        parse(Settings, [])


REPORT = (
    f"This is a fault of ddpm_sa {__version__}, not of your input. Please report it with the lines "
    "above and this command: COMMAND\n"
)
PROGRAM = """
import sys
from ddpm_sa.cli import run_program
from ddpm_sa.errors import UserError
def main():
    {body}
run_program(main)
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Faulty:
    steps: int = 1

    def __post_init__(self) -> None:
        raise TypeError("our bug")


def test_a_bug_in_a_check_of_settings_is_not_taken_for_a_mistake() -> None:
    with pytest.raises(TypeError, match="our bug"):
        parse(Faulty, [])


@pytest.mark.parametrize(
    ("body", "code", "told"),
    [
        ("print('done')", 0, ""),
        (
            "raise UserError('no such thing:\\n   size=0')",
            2,
            "error: no such thing: size=0\n",
        ),
        *(
            (f"raise {kind}('our bug')", 1, f"{kind}: our bug\n" + REPORT)
            for kind in ("RuntimeError", "ValueError", "TypeError")
        ),
    ],
    ids=["well", "a user's mistake", "a bug", "a bug of value", "a bug of type"],
)
def test_a_program_ends_with_0_or_2_and_one_line_and_with_a_traceback_for_bugs(
    body: str, code: int, told: str
) -> None:
    program = [sys.executable, "-c", PROGRAM.format(body=body)]
    ended = subprocess.run(program, capture_output=True, text=True, check=False)
    assert ended.returncode == code
    assert re.search(re.escape(told).replace("COMMAND", r"[^\n]*") + r"\Z", ended.stderr)
    assert ("Traceback" in ended.stderr) == (code == 1)
    assert ended.stderr.count("\n") <= 1 or code == 1


def test_only_the_first_process_tells_of_a_mistake(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def main() -> None:
        raise UserError("size=0")

    for rank, told in [("0", "error: size=0\n"), ("1", "")]:
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as end:
            run_program(main)
        assert end.value.code == 2
        assert capsys.readouterr().err == told
