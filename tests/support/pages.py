"""The README and the pages of docs/: their code, their commands, their links."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [README, *sorted(DOCS.rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

_BLOCK = re.compile(
    r"(?:<!-- skip: (?P<reason>.+?) -->\n)?```(?P<language>\w*)\n(?P<code>.*?)```", re.S
)
_PROGRAM = re.compile(r"(training|sampling|benchmarks|examples)/\w+\.py")


def python_of(page: Path) -> str:
    """All Python blocks of a page, in order, each on its own lines, so that errors say where.

    A block is left out only if a comment before it says why: `<!-- skip: needs the hub -->`.
    """
    text = page.read_text(encoding="utf-8")
    lines = [""] * text.count("\n")
    for block in _BLOCK.finditer(text):
        if block["language"] == "python" and not block["reason"]:
            first = text.count("\n", 0, block.start("code"))
            code = block["code"].splitlines()
            lines[first : first + len(code)] = code
    return "\n".join(lines) + "\n"


def skipped_of(page: Path) -> list[str]:
    """The reasons for which blocks of a page are left out."""
    blocks = _BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [block["reason"] for block in blocks if block["reason"]]


def commands_of(page: Path) -> list[str]:
    """Commands that run a program of this repository, in blocks and between backticks."""
    text = page.read_text(encoding="utf-8")
    shell = "\n".join(b["code"] for b in _BLOCK.finditer(text) if b["language"] in ("", "bash"))
    lines = shell.replace("\\\n", " ").splitlines()
    inline = re.findall(r"`((?:python|torchrun|accelerate launch) [^`]+)`", _BLOCK.sub("", text))
    return [line for line in [*lines, *inline] if _PROGRAM.search(line.partition("#")[0])]


def split_command(command: str) -> tuple[str, list[str]]:
    """The program of a command, such as sampling/sample.py, and the words after it."""
    words = shlex.split(command, comments=True)
    at = next(i for i, word in enumerate(words) if _PROGRAM.fullmatch(word))
    return words[at], words[at + 1 :]


def links_of(page: Path) -> list[str]:
    """Links and pictures of a page that are no web addresses."""
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    return [link for link in links if not link.startswith("http")]
