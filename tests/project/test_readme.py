"""What the README promises, beside what tests/project/test_docs.py holds of every page."""

import re

from tests.support.pages import README, commands_of

TEXT = README.read_text(encoding="utf-8")


def paragraphs() -> list[str]:
    """The README's running text."""
    text = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
    return [part for part in text.split("\n\n") if part[:1] not in "#|![-`\n" and part.strip()]


def test_no_paragraph_is_longer_than_six_lines():
    """Six lines of 100 characters, as the page is shown."""
    for paragraph in paragraphs():
        assert len(re.sub(r"\]\([^)]*\)", "]", paragraph)) <= 600, paragraph


def test_every_claim_of_the_comparison_has_a_source():
    table = TEXT.partition("## Comparison")[2].partition("\n\n[^")[0]
    used = set(re.findall(r"\[\^(\w+)\]", table))
    given = set(re.findall(r"^\[\^(\w+)\]: \[", TEXT, re.MULTILINE))
    assert used == given
    for row in table.splitlines():
        if row.startswith("| ") and not row.startswith(("| |", "| license")):
            for cell in row.split("|")[2:-1]:
                bare = "not documented" in cell or "left to the user" in cell
                assert bare or "[^" in cell or cell.strip() == "package and programs", cell


def test_readme_has_a_command_for_each_thing_a_user_does():
    commands = " ".join(commands_of(README))
    for program in ("training/train.py", "sampling/sample.py", "sampling/attention.py"):
        assert program in commands
