"""Screenshots of the page of sampling/app.py for the docs, taken with a real browser.

    python benchmarks/screenshot.py --model runs/demo/model --output_dir docs

Writes page.png, as on a laptop, and page-phone.png. Needs playwright and Debian's chromium.
"""

import dataclasses
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from playwright.sync_api import Browser, sync_playwright

from ddpm_sa.cli import parse, run_program


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Which image to show.

    Attributes:
        model: A model folder.
        output_dir: Where the pictures go.
        seed: Which image.
        steps: Steps of the scheduler.
        scheduler: A short name, as sampling/sample.py has them.
    """

    model: str
    output_dir: str
    seed: int = 0
    steps: int = 50
    scheduler: str = "ddim"


def main() -> None:
    settings = parse(Settings)
    browser_file = shutil.which("chromium")
    if browser_file is None:
        raise ValueError("no chromium is installed (on Debian: apt-get install chromium)")
    command = [sys.executable, "sampling/app.py", "--model", settings.model, "--port", "0"]
    program = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    try:
        address = re.search(r"http://\S+", program.stdout.readline())
        if address is None:
            raise ValueError("sampling/app.py did not start")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=browser_file)
            for name, width, height in (("page.png", 1100, 1000), ("page-phone.png", 390, 844)):
                path = Path(settings.output_dir) / name
                _take(browser, address.group(), settings, width, height, path)
    finally:
        program.terminate()
        program.wait()


def _take(
    browser: Browser, address: str, settings: Settings, width: int, height: int, path: Path
) -> None:
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(120_000)
    page.goto(address)
    for where, value in (("#seed input", settings.seed), ("#steps input", settings.steps)):
        page.locator(where).first.fill(str(value))
        page.locator(where).first.press("Tab")
    page.click("#scheduler input")
    page.get_by_role("option", name=settings.scheduler, exact=True).click()
    page.click("#make")
    page.wait_for_function("document.querySelector('#numbers').innerText.includes('overlap')")
    page.wait_for_function("[...document.images].every(image => image.complete)")
    bottom = page.locator("#numbers").bounding_box()
    assert bottom is not None
    page.screenshot(
        path=path,
        full_page=True,
        clip={"x": 0, "y": 0, "width": width, "height": bottom["y"] + bottom["height"] + 16},
    )
    page.close()


if __name__ == "__main__":
    run_program(main)
