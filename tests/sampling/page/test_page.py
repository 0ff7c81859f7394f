"""The page of sampling/app.py, in a real browser, as a person uses it and as a careless one."""

import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from playwright.sync_api import Page, sync_playwright

from ddpm_sa import Pipeline, UNet, ablate_attention, record_attention
from sampling.page.explorer import measure_maps, rms_difference
from tests.support.reference import SMALL, randomise_
from tests.support.runs import ROOT, environment

LAYER = "up_blocks.0.attentions.1"
SIZE = (8, 12)
PATIENCE = 120_000  # milliseconds, for a machine that has other things to do


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        # One that is installed and does not start is an error, not a reason to skip.
        chromium = playwright.chromium.launch(channel="chromium", executable_path=_installed())
        yield chromium
        chromium.close()


def _installed() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("no Chromium is installed (on Debian: apt-get install chromium)")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The program, as a user starts it: (model folder, address, its temporary folder)."""
    folder = tmp_path_factory.mktemp("page")
    config = {"sample_size": SIZE, "in_channels": 1, "out_channels": 1}
    unet = randomise_(UNet(**SMALL | config))
    Pipeline(unet, DDPMScheduler()).save_pretrained(folder / "model")
    (folder / "temporary").mkdir()
    program = subprocess.Popen(
        [sys.executable, "sampling/app.py", "--model", folder / "model", "--port", "0"],
        cwd=ROOT,
        env=environment() | {"TMPDIR": str(folder / "temporary")},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    address = re.search(r"http://\S+", program.stdout.readline())
    assert address
    yield folder / "model", address.group().rstrip("/"), folder / "temporary"
    program.send_signal(signal.SIGTERM)
    assert program.wait(60) == 0
    program.stdout.close()
    assert not list((folder / "temporary").glob("ddpm_sa-page-*"))
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(address.group(), timeout=5)


@pytest.fixture
def page(browser, served):
    """The page on a laptop, with an image of seed 3 in 5 steps; it asks no other host."""
    asked = []
    tab = browser.new_page(viewport={"width": 1280, "height": 800})
    tab.set_default_timeout(PATIENCE)
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(served[1])
    fill(tab, "#seed input", "3")
    fill(tab, "#steps input[type=number]", "5")
    make(tab)
    yield tab
    tab.close()
    assert asked
    assert all(url.startswith((served[1], "data:", "blob:")) for url in asked)


def fill(tab: Page, where: str, value: str) -> None:
    tab.fill(where, value)
    tab.press(where, "Tab")


def make(tab: Page) -> None:
    tab.click("#make")
    tab.wait_for_function("document.querySelector('#numbers').innerText.includes('overlap')")


def settled(tab: Page, condition: str) -> None:
    tab.wait_for_function(condition)


def rows(tab: Page) -> dict[str, list[str]]:
    lines = tab.locator("#numbers tr").all_inner_texts()
    table = [[cell.strip() for cell in line.split("\t")] for line in lines[1:]]
    return {name: values for name, *values in table}


def pixels(tab: Page) -> list[int]:
    return [int(tab.input_value(f"#{name} input")) for name in ("Ay", "Ax", "By", "Bx")]


def click(tab: Page, y: int, x: int) -> None:
    """Click a pixel of the image, wherever on the screen the browser has put it."""
    box = tab.locator("#image img").bounding_box()
    assert box
    scale = min(box["width"] / SIZE[1], box["height"] / SIZE[0])
    left = box["x"] + (box["width"] - scale * SIZE[1]) / 2
    top = box["y"] + (box["height"] - scale * SIZE[0]) / 2
    tab.mouse.click(left + (x + 0.5) * scale, top + (y + 0.5) * scale)


def expected(model: Path, moment: int, queries: list[tuple[int, int]], head: int | None = None):
    """What the library says of seed 3 in 5 steps: the rows of the page's table."""
    pipeline = Pipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    with record_attention(pipeline.unet, queries=queries, heads="all") as maps:
        pipeline(num_images=1, steps=5, seed=3)
    looks = maps[LAYER][moment][0].numpy()
    table = measure_maps(looks.mean(0) if head is None else looks[head], queries, SIZE)
    return {name: values for name, *values in table}


def test_a_click_a_scrub_and_a_head_show_the_numbers_of_the_library(page, served):
    assert "5 evaluations. ddim, seed 3" in page.inner_text("#status")
    first = pixels(page)
    shown = [(first[0], first[1]), (first[2], first[3])]
    assert rows(page) == expected(served[0], 4, shown)

    heatmap = page.get_attribute("#A img", "src")
    click(page, 2, 10)
    settled(page, "document.querySelector('#numbers').innerText.includes('(2, 10)')")
    assert pixels(page) == [2, 10, *first[2:]]
    assert page.get_attribute("#A img", "src") != heatmap
    shown = [(2, 10), shown[1]]
    assert rows(page) == expected(served[0], 4, shown)

    page.check("#which input >> nth=1")
    click(page, 7, 0)
    settled(page, "document.querySelector('#numbers').innerText.includes('(7, 0)')")
    shown[1] = (7, 0)

    heatmap = page.get_attribute("#A img", "src")
    page.focus("#moment input[type=range]")
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    settled(page, "document.querySelector('#when').innerText.includes('Evaluation 2 of 5')")
    assert page.get_attribute("#A img", "src") != heatmap
    assert rows(page) == expected(served[0], 1, shown)

    page.click("#head input")
    page.get_by_role("option", name="head 2").click()
    alone = expected(served[0], 1, shown, head=2)
    entropy = alone["entropy, nats"][0]
    settled(page, f"document.querySelector('#numbers').innerText.includes('{entropy}')")
    assert rows(page) == alone


def test_attention_switched_off_changes_the_image_by_what_the_library_says(page, served):
    page.check(f"#replaced label:has-text('{LAYER}') input")
    page.check("#replacement label:has-text('all equally') input")
    page.click("#replace")
    settled(page, "document.querySelector('#other_status').innerText.includes('at the end')")
    pipeline = Pipeline.from_pretrained(served[0])
    pipeline.set_progress_bar_config(disable=True)
    settings = {"num_images": 1, "steps": 5, "seed": 3, "output_type": "pt"}
    plain = torch.as_tensor(pipeline(**settings).images).numpy()
    with ablate_attention(pipeline.unet, "uniform", [LAYER]):
        other = torch.as_tensor(pipeline(**settings).images).numpy()
    change = rms_difference(2 * plain - 1, 2 * other - 1)
    assert change > 0.001
    assert f"{change:.1%} at the end" in page.inner_text("#other_status")


def test_the_numbers_can_be_taken_home(page, served, tmp_path):
    page.click("#take")
    page.wait_for_selector("#files a[download]")
    with page.expect_download() as download:
        page.click("#files a[download$='.npz']")
    download.value.save_as(tmp_path / "attention.npz")
    first = pixels(page)
    queries = [(first[0], first[1]), (first[2], first[3])]
    pipeline = Pipeline.from_pretrained(served[0])
    pipeline.set_progress_bar_config(disable=True)
    with record_attention(pipeline.unet, queries=queries, heads="all") as maps:
        pipeline(num_images=1, steps=5, seed=3)
    with np.load(tmp_path / "attention.npz") as file:
        np.testing.assert_array_equal(file["queries"], queries)
        np.testing.assert_array_equal(file[f"maps/{LAYER}"], torch.cat(maps[LAYER]).numpy())


def test_bad_input_is_refused_or_bounded_and_the_page_goes_on(page, served):
    before = pixels(page)
    box = page.locator("#image").bounding_box()
    picture = page.locator("#image img").bounding_box()
    assert box
    assert picture
    page.mouse.click(box["x"] + box["width"] - 2, box["y"] + 2)  # outside of the picture
    page.mouse.click(picture["x"] + picture["width"] + 3, picture["y"] + 3)
    page.wait_for_timeout(1000)
    assert pixels(page) == before

    fill(page, "#Ay input", "99")
    page.wait_for_selector(".toast-body:has-text('99')")
    fill(page, "#Ay input", "1")
    settled(page, "document.querySelector('#numbers').innerText.includes('(1, ')")

    fill(page, "#seed input", "-5")
    page.click("#make")
    page.wait_for_selector(".toast-body:has-text('-5')")
    fill(page, "#seed input", "3")

    fill(page, "#model input", "/etc/passwd")
    assert page.input_value("#model input") == str(served[0])

    fill(page, "#steps input[type=number]", "100000")
    page.click("#make")
    settled(
        page,
        "document.querySelector('#status').innerText.includes('250 evaluations') || "
        "[...document.querySelectorAll('.toast-body')].some(t => t.innerText.includes('100000'))",
    )
    fill(page, "#steps input[type=number]", "2")
    page.click("#make")
    settled(page, "document.querySelector('#status').innerText.includes('2 evaluations')")


def test_the_page_fits_a_phone(browser, served):
    tab = browser.new_page(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    tab.set_default_timeout(PATIENCE)
    tab.goto(served[1])
    fill(tab, "#steps input[type=number]", "2")
    make(tab)
    # The numbers may come before the picture is drawn.
    settled(tab, "document.querySelector('#A img')?.getBoundingClientRect().width > 0")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    picture = tab.locator("#A img").bounding_box()
    assert picture
    assert picture["x"] >= 0
    assert 300 < picture["width"] <= 390
    tab.close()


@pytest.mark.parametrize("path", ["/etc/passwd", f"{ROOT}/pyproject.toml", "pyproject.toml"])
def test_no_file_but_its_own_is_served(path, served):
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(f"{served[1]}/gradio_api/file={path}", timeout=20)
    error.value.close()
    assert error.value.code in (403, 404)
