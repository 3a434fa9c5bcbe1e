"""The page in a real browser, before the real GenEval and OCR services.

With PAGE_SCREENSHOTS=FOLDER the last test leaves the pictures of the documentation there.
"""

import asyncio
import base64
import io
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import browser
import httpx
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from flow_grpo.runner import LocalStack
from reward_api import Item, RewardClient
from tiny_world.prompts import WORLDS, every_prompt
from tiny_world.scenes import Scene, Shape, misread, render, sample_scene
from tiny_world.shapes import PALETTE, extent

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(bool(browser.missing()), reason=browser.missing() or "a browser is here"),
]

TOKEN = "the page's token"
PROMPT = 'a red circle and a blue cross above the word "FOX"'
METADATA = {
    "tag": "color_attr",
    "include": [{"class": "circle", "count": 1, "color": "red"}, {"class": "cross", "count": 1, "color": "blue"}],
}
SHAPES = (
    Shape("circle", "red", 70, 70, 40, PALETTE["red"]),
    Shape("cross", "blue", 190, 150, 42, PALETTE["blue"]),
)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REWARD_TOKEN", TOKEN)
        logs = tmp_path_factory.mktemp("logs")
        rewards: dict[str, dict[str, str]] = {"geneval": {"world": "small"}, "ocr": {}}
        with LocalStack(rewards, {"geneval": 2}, log_dir=logs, start_timeout_s=300) as running:
            yield running


@pytest.fixture(scope="module")
def sign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    picture = Image.fromarray(render(Scene(SHAPES, 128, 256)))
    ImageDraw.Draw(picture).text((30, 205), "FOX", fill=(250, 250, 250), font=ImageFont.load_default(40))
    path = tmp_path_factory.mktemp("pictures") / "sign.png"
    picture.save(path)
    return path


class Page:
    """What the tests do with the page."""

    def __init__(self, driver: Any, url: str) -> None:
        self.driver = driver
        driver.get(f"{url}/")

    def all(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements("css selector", selector))

    def one(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def until(self, condition: Callable[[], Any], within_s: float = 60.0) -> Any:
        from selenium.common.exceptions import StaleElementReferenceException

        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            try:
                if found := condition():
                    return found
            except StaleElementReferenceException:  # the row was drawn anew meanwhile
                pass
            time.sleep(0.1)
        raise AssertionError(f"not within {within_s} s; the page says: {self.one('body').text}")

    def log_in(self) -> None:
        self.until(lambda: self.one("#connection-text").text == "needs a token")
        self.one("#token").send_keys(TOKEN)
        self.one("#token-form button").click()
        self.until(lambda: self.one("#connection-text").text == "live")
        self.until(lambda: self.all("#choices input"))
        self.driver.get_log("browser")  # what the refusal left there

    def submit(self, picture: Path, prompt: str, metadata: object = None) -> list[Any]:
        self.one("#image").send_keys(str(picture))
        self.one("#prompt").send_keys(prompt)
        if metadata is not None:
            text = json.dumps(metadata)
            self.driver.execute_script("document.getElementById('metadata').value = arguments[0]", text)
        self.one("#submit").click()
        self.until(lambda: self.one("#form-status").text.startswith("Answered"))
        return self.all("#results article")

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture
def page(stack: LocalStack) -> Iterator[Page]:
    with browser.chromium() as driver:
        opened = Page(driver, stack.gateway_url)
        opened.log_in()
        yield opened


def test_rewards_and_replicas_are_seen_live(page: Page, stack: LocalStack) -> None:
    assert [row.get_attribute("data-reward") for row in page.all("#rewards tbody tr")] == ["geneval", "ocr"]
    assert [row.text.split()[0] for row in page.all("#rewards tbody tr")] == ["geneval", "ocr"]
    assert len(page.all("#replicas tbody tr")) == 3
    assert page.one("[data-reward=geneval] .count").text == "2/2"
    stopped = stack.services[1].process
    stopped.send_signal(signal.SIGSTOP)  # silent, so that its probes fail
    try:
        page.until(lambda: page.one("[data-reward=geneval] .count").text == "1/2")
        page.until(lambda: "down" in page.one(f"[data-replica='{stack.services[1].url}']").text)
    finally:
        stopped.send_signal(signal.SIGCONT)
    page.until(lambda: page.one("[data-reward=geneval] .count").text == "2/2")
    assert page.complaints() == []


def test_the_form_shows_scores_with_boxes_colors_and_text_on_the_image(page: Page, sign: Path) -> None:
    geneval, ocr = page.submit(sign, PROMPT, METADATA)
    assert geneval.find_element("tag name", "output").text == "1"
    assert "as asked" in geneval.text
    assert ocr.find_element("tag name", "output").text == "1"
    assert "FOX" in ocr.text
    labels = {label.text for label in page.all("#labels .label")}
    assert labels == {"red circle", "blue cross", "FOX"}
    shown = page.one("#shown").rect
    assert page.one("#boxes").rect == shown
    drawn = page.all("#boxes polygon.object")
    assert len(drawn) == 2
    for shape, polygon in zip(SHAPES, drawn, strict=True):
        x0, y0, x1, y1 = (edge * shape.radius for edge in extent(shape.shape))
        scale = shown["width"] / 256
        rect = polygon.rect
        assert rect["x"] - shown["x"] == pytest.approx(scale * (shape.cx + x0), abs=4)
        assert rect["y"] - shown["y"] == pytest.approx(scale * (shape.cy + y0), abs=4)
        assert rect["width"] == pytest.approx(scale * (x1 - x0), abs=6)
        assert rect["height"] == pytest.approx(scale * (y1 - y0), abs=6)
    page.until(lambda: page.one("#images li img").get_attribute("alt") == PROMPT)
    assert {line.text for line in page.all("#images li:first-child .name")} == {"geneval", "ocr"}
    assert page.complaints() == []


def test_an_item_that_fails_is_shown_with_its_error(page: Page, sign: Path) -> None:
    geneval, ocr = page.submit(sign, "a photo of a red circle and a blue cross")
    assert geneval.find_element("tag name", "output").text == "1"
    assert ocr.find_elements("tag name", "output") == []
    assert "missing_text" in ocr.text


def test_a_prompt_that_looks_like_markup_stays_text(page: Page, sign: Path) -> None:
    prompt = '<img src=x onerror="document.title=1"> says "FOX"'
    page.submit(sign, prompt, METADATA)
    page.until(lambda: page.one("#images li .prompt").text.startswith("<img"))
    assert page.driver.title == "Reward gateway"
    assert page.complaints() == []


def test_boxes_fit_a_photograph_that_says_it_lies_on_its_side(page: Page, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = tmp_path / "photo.jpg"
    wide = np.full((100, 200, 3), 128, np.uint8)
    Image.fromarray(wide).save(picture, exif=exif)
    page.submit(picture, 'nothing says "FOX"', METADATA)
    size = page.one("#shown").rect
    assert size["width"] == pytest.approx(2 * size["height"], rel=0.02)
    assert page.one("#boxes").get_dom_attribute("viewBox") == "0 0 200 100"


def test_the_form_works_by_keyboard_alone(page: Page, sign: Path) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    page.one("#image").send_keys(str(sign))
    page.driver.execute_script("arguments[0].focus()", page.one("#image"))
    order = []
    for _ in range(5):
        ActionChains(page.driver).send_keys(Keys.TAB).perform()
        focused = page.driver.switch_to.active_element
        order.append(focused.get_attribute("id") or focused.get_attribute("value") or focused.tag_name)
    assert order == ["prompt", "geneval", "ocr", "summary", "submit"]
    page.one("#prompt").send_keys(PROMPT, Keys.CONTROL, Keys.ENTER)
    page.until(lambda: page.one("#form-status").text.startswith("Answered"))


def test_the_gateway_stops_at_once_though_a_page_is_open(tmp_path: Path) -> None:
    with LocalStack({"geneval": {}}, log_dir=tmp_path, start_timeout_s=300) as stack, browser.chromium() as driver:
        page = Page(driver, stack.gateway_url)
        page.log_in()
        assert stack.gateway is not None
        stack.gateway.process.terminate()
        started = time.monotonic()
        assert stack.gateway.process.wait(timeout=30) in (0, -signal.SIGTERM)
        assert time.monotonic() - started < 4  # answers in flight would be given 5 s
        page.until(lambda: "again in" in page.one("#connection-text").text)


async def send_pictures(url: str, count: int) -> None:
    """Pictures of the small world, slowly enough that each becomes a thumbnail."""
    world, draws = WORLDS["small"], random.Random(0)
    async with RewardClient(url, timeout_s=120, token=TOKEN) as client:
        for prompt in draws.sample(list(every_prompt(world)), count):
            seen = misread(prompt, world, draws) if draws.random() < 0.4 else prompt  # some pictures are wrong
            drawn = Item(render(sample_scene(seen, world, draws)), prompt["prompt"], rewards=("geneval",))
            await client.score([drawn] * draws.randint(1, 12))
            await asyncio.sleep(0.6)


@pytest.mark.parametrize(("width", "dark"), [(1180, False), (1180, True), (360, False)])
def test_the_page_fits_its_window(stack: LocalStack, sign: Path, width: int, dark: bool) -> None:
    url, folder = stack.gateway_url, os.environ.get("PAGE_SCREENSHOTS")
    asyncio.run(send_pictures(url, 24 if folder else 2))
    with browser.chromium(width=width, height=780, dark=dark) as driver:
        page = Page(driver, url)
        page.log_in()
        page.submit(sign, PROMPT, METADATA)
        page.until(lambda: len(page.all("#images li")) >= 2)
        wide, tall = driver.execute_script(
            "return [document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
        )
        ground = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        if folder:
            time.sleep(3)
            clip = {"x": 0, "y": 0, "width": width, "height": tall, "scale": 1}
            shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
            name = "phone" if width < 500 else "dark" if dark else "light"
            picture = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
            picture.quantize(256).save(Path(folder, f"gateway-page-{name}.png"), optimize=True)
    assert wide <= width
    brightness = np.mean([int(level) for level in ground.removeprefix("rgb(").removesuffix(")").split(",")])
    assert (brightness < 60) if dark else (brightness > 200)


def test_the_stream_is_closed_to_those_without_the_token(stack: LocalStack) -> None:
    with httpx.Client(base_url=stack.gateway_url, trust_env=False) as client:
        assert client.get("/v1/page/events").status_code == 401
        assert client.get("/").status_code == 200
