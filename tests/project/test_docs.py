"""What the README and the pages of docs/ say: their code runs, their commands are understood."""

import dataclasses
import importlib
import re
import sys
import typing
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import DDPMScheduler

from ddpm_sa import Pipeline, UNet, preset
from tests.support.pages import (
    DOCS,
    NAMES,
    PAGES,
    README,
    ROOT,
    commands_of,
    links_of,
    python_of,
    skipped_of,
    split_command,
)

WITH_PYTHON = [page for page in PAGES if python_of(page).strip()]
COMMANDS = [(page, command) for page in PAGES for command in commands_of(page)]
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def demo_model(tmp_path_factory) -> Path:
    """A folder like that of `make demo`: grey images of 32 x 32, attention at 16 x 16 and below."""
    torch.manual_seed(0)
    grey = {"in_channels": 1, "out_channels": 1, "sample_size": 32}
    small = {"block_out_channels": (8, 16), "norm_num_groups": 2}
    settings = preset("tiny").unet | grey | small
    folder = tmp_path_factory.mktemp("demo") / "model"
    Pipeline(UNet(**settings), DDPMScheduler(**preset("tiny").scheduler)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_of_a_page_runs_from_top_to_bottom(page, demo_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("demo", "mnist"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "model").symlink_to(demo_model)
    exec(compile(python_of(page), str(page), "exec"), {"__name__": "page"})


def test_blocks_of_python_are_skipped_for_want_of_the_hub_alone():
    assert {reason for page in PAGES for reason in skipped_of(page)} <= {
        "needs the Hugging Face Hub"
    }


class _ReadError(Exception):
    """Ends a program once it has read its settings."""


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=[command for _, command in COMMANDS])
def test_commands_are_understood_by_the_programs_themselves(page, command, monkeypatch):
    name, words = split_command(command)
    module = importlib.import_module(name.removesuffix(".py").replace("/", "."))
    monkeypatch.chdir(ROOT)  # where the configs are
    monkeypatch.setattr(sys, "argv", [name, *words])
    if name.startswith("examples/"):
        module.read_arguments(words)
        return
    parse = module.parse

    def read(*arguments):
        raise _ReadError(parse(*arguments))

    monkeypatch.setattr(module, "parse", read)
    with pytest.raises(_ReadError):
        module.main()


def test_every_program_has_a_command_in_the_docs():
    named = {split_command(command)[0] for _, command in COMMANDS}
    programs = {f"sampling/{path.name}" for path in (ROOT / "sampling").glob("*.py")}
    assert programs - {"sampling/__init__.py"} <= named
    assert "training/train.py" in named


def flags_of(config: type) -> set[str]:
    """The flags of a dataclass of settings, nested ones with a dot."""
    flags = set()
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        inner = hints[field.name]
        if dataclasses.is_dataclass(inner):
            flags |= {f"{field.name}.{flag}" for flag in flags_of(typing.cast(type, inner))}
        else:
            flags.add(field.name)
    return flags


@pytest.mark.parametrize(
    ("name", "programs"),
    [
        ("training.md", ["training.config"]),
        ("science.md", ["training.config", "sampling.sample"]),
        ("resuming.md", ["training.config", "sampling.sample"]),
        (
            "sampling.md",
            ["sampling.sample", "sampling.edit", "sampling.attention", "training.config"],
        ),
        ("editing.md", ["sampling.edit"]),
        ("conditions.md", ["training.config", "sampling.sample"]),
        ("restoration.md", ["sampling.restore"]),
        ("evaluation.md", ["sampling.evaluate", "training.config"]),
        ("converting.md", ["sampling.convert", "sampling.sample"]),
        ("openai-networks.md", ["sampling.convert"]),
        ("elsewhere.md", ["sampling.export"]),
        ("paper.md", ["sampling.paper", "training.config"]),
        ("memory.md", ["training.config", "sampling.sample"]),
    ],
)
def test_flags_between_backticks_are_real(name, programs):
    known = {"help", "config"}
    for program in programs:
        module = importlib.import_module(program)
        known |= flags_of(getattr(module, "TrainConfig", None) or module.Settings)
    text = (DOCS / name).read_text(encoding="utf-8")
    named = set(re.findall(r"`--([a-z][\w.]+)", text))
    named = {flag for flag in named if not flag.startswith("scheduler_options.")}
    assert named
    assert named <= known


def pages_of(nav: list | str | dict) -> list[str]:
    """The pages that a navigation names."""
    if isinstance(nav, str):
        return [nav]
    entries = nav if isinstance(nav, list) else list(nav.values())
    return [page for entry in entries for page in pages_of(entry)]


def test_navigation_has_every_page_once():
    named = pages_of(SITE["nav"])
    assert sorted(named) == sorted(str(page.relative_to(DOCS)) for page in PAGES if page != README)


def test_every_picture_is_shown_somewhere():
    shown = {Path(link).name for page in PAGES for link in links_of(page)}
    assert {path.name for path in DOCS.glob("*.png")} <= shown


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_to_files(page):
    for link in links_of(page):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.M)
            assert anchor in {_slug(heading) for heading in headings}, link


def _slug(heading: str) -> str:
    """As GitHub and MkDocs make it, for headings of words."""
    return re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip())


def test_reference_names_what_there_is():
    named = [
        name
        for page in (DOCS / "reference").glob("*.md")
        for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.M)
    ]
    assert len(named) > 20
    for name in named:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            home, _, member = name.rpartition(".")
            assert hasattr(importlib.import_module(home), member), name


def test_site_loads_nothing_from_elsewhere():
    """MathJax, fonts, or scripts of a content delivery network would."""
    assert SITE["theme"]["font"] is False
    for key in ("extra_javascript", "extra_css"):
        assert not [path for path in SITE.get(key, []) if "//" in path]
