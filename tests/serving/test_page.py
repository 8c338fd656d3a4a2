"""The chat page in a real browser."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from easyllm.inference.engine_protocol import EngineFailed, Step
from tests.serving.served import Served, spec
from tests.support import wait_for

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs chromium and chromium-driver"
)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--window-size=1100,800",
)  # fmt: skip
EVIL = (
    "<script>document.title='stolen'</script><img src=x onerror=\"document.title='stolen'\">"
    "\n```html\n<b onclick=alert(1)>bold</b></pre><script>1</script>\n```\n& done"
)


class Scripted:
    """The real engine, but for prompts that ask for certain words."""

    max_positions, failed, waiting = 4096, False, 0

    def __init__(self, engine: Any):
        self.engine, self.tokenizer = engine, engine.tokenizer
        self.closed = 0

    async def generate(self, prompt: Any, sampling: Any) -> AsyncGenerator[Step, None]:
        asked = self.tokenizer.decode(prompt)
        last = asked.rpartition("<user>")[2]
        if last.startswith("say evil"):
            for token in self.tokenizer(EVIL)["input_ids"]:
                yield Step([token])
            yield Step([], [], "stop")
        elif last.startswith("break down"):
            yield Step(self.tokenizer("half")["input_ids"])
            raise EngineFailed("out of memory")
        elif last.startswith("go on"):
            try:
                while True:
                    yield Step(self.tokenizer("and on ")["input_ids"])
                    await asyncio.sleep(0.02)
            finally:
                self.closed += 1
        else:
            async for step in self.engine.generate(prompt, sampling):
                yield step


class Page:
    def __init__(self, driver: webdriver.Chrome, served: Served):
        self.driver, self.served = driver, served

    def open(self) -> None:
        self.driver.get(self.served.url)
        self.driver.execute_script("localStorage.clear(); sessionStorage.clear()")
        self.driver.refresh()

    def by(self, id_: str) -> WebElement:
        return self.driver.find_element(By.ID, id_)

    def items(self, role: str = "assistant") -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, f"#messages > .{role}")

    def text(self, at: int = -1) -> str:
        items = self.items()
        return str(items[at].get_property("textContent")) if items else ""

    def send(self, text: str) -> None:
        self.by("prompt").send_keys(text, Keys.ENTER)

    def answered(self) -> bool:
        return self.by("send").is_displayed()

    def ask(self, text: str) -> str:
        count = len(self.items())
        self.send(text)
        wait_for(lambda: self.answered() and len(self.items()) > count)
        return self.text()

    def complaint(self) -> str:
        return self.by("notice").text

    def complaints_of_the_browser(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]


def shown(text: str) -> str:
    """An answer of full length as the page has it."""
    return text.strip(" \t\n\r\v\f\xa0\ufeff") + "The answer reached its longest length."


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    yield driver
    driver.quit()


Make = Callable[..., Page]


@pytest.fixture(scope="module")
def make(
    driver: webdriver.Chrome, served: Served, model: Path, tmp_path_factory: Any
) -> Iterator[Make]:
    made: list[Served] = []

    def make(**options: Any) -> Page:
        run = spec(tmp_path_factory.mktemp("page"), model)
        made.append(Served(run, Scripted(served.engine), **options))
        return Page(driver, made[-1])

    yield make
    driver.get("about:blank")
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def page(make: Make) -> Page:
    return make()


@pytest.fixture(autouse=True)
def quiet_browser(page: Page) -> Iterator[None]:
    """No violation of the Content-Security-Policy, no error of the page's own."""
    page.complaints_of_the_browser()
    yield
    wrong = [text for text in page.complaints_of_the_browser() if "Failed to load" not in text]
    assert not wrong


def test_asks_and_sees_the_answer_grow(page: Page) -> None:
    page.open()
    wait_for(lambda: page.by("model").text == "small")
    assert page.by("welcome").is_displayed()
    page.send("go on")
    wait_for(lambda: "and on" in page.text())
    early = page.text()
    assert not page.answered()
    wait_for(lambda: len(page.text()) > len(early) + 20)
    assert page.text().startswith(early)
    page.by("prompt").send_keys(Keys.ESCAPE)
    wait_for(page.answered)
    assert page.items("user")[0].text == "go on"


def test_the_answer_is_the_models(page: Page) -> None:
    page.open()
    whole = page.served.text("hi")
    assert page.ask("hi") == shown(whole)
    # the second question is asked with the first and its answer
    again = page.served.text({"user": "hi"}, {"assistant": whole}, {"user": "more"})
    assert page.ask("more") == shown(again)


def test_stops(page: Page) -> None:
    page.open()
    closed = page.served.engine.closed
    page.send("go on")
    wait_for(lambda: "and on" in page.text())
    page.by("stop").click()
    wait_for(lambda: page.served.engine.closed == closed + 1)
    wait_for(page.answered)
    assert page.text().endswith("Stopped.")
    length = len(page.text())
    time.sleep(0.2)
    assert len(page.text()) == length
    assert not page.complaint()


def test_model_text_stays_text(page: Page) -> None:
    page.open()
    text = page.ask("say evil")
    assert "<script>document.title='stolen'</script><img src=x" in text
    assert "<b onclick=alert(1)>bold</b></pre><script>1</script>" in text and "& done" in text
    (item,) = page.items()
    inside = page.driver.execute_script(
        "return [...arguments[0].querySelectorAll('*')].map((e) => e.tagName)", item
    )
    assert inside == ["P", "PRE", "P"]
    page.driver.refresh()  # and so does what the browser kept
    wait_for(lambda: page.text() == text)
    wait_for(lambda: page.driver.title == "small")


def test_errors_are_seen_and_the_words_are_not_lost(page: Page) -> None:
    page.open()
    # as long as no typed prompt is
    page.driver.execute_script("arguments[0].value = 'x'.repeat(5000)", page.by("prompt"))
    page.by("send").click()
    wait_for(lambda: "4096 tokens" in page.complaint())
    assert page.by("prompt").get_property("value") == "x" * 5000
    assert not page.items() and not page.items("user")
    page.by("new").click()
    page.by("prompt").clear()
    page.send("break down")
    wait_for(lambda: "out of memory" in page.complaint())
    assert page.text() == "half"
    assert "out of memory" not in page.ask("hi") and not page.complaint()


def test_sampling_and_the_system_message_are_asked_for(page: Page) -> None:
    page.open()
    page.by("open-settings").click()
    for id_, value in {"max_tokens": "3", "temperature": "1", "seed": "7",
                       "system": "be brief"}.items():  # fmt: skip
        page.by(id_).send_keys(value)
    page.by("close-settings").click()
    expected = page.served.text(
        {"system": "be brief"}, {"user": "hi"}, max_tokens=3, temperature=1.0, seed=7
    )
    assert page.ask("hi") == shown(expected)
    page.driver.refresh()
    assert page.by("seed").get_property("value") == "7"


def test_keeps_the_conversation_until_a_new_one(page: Page) -> None:
    page.open()
    answer = page.ask("hi")
    page.driver.refresh()
    wait_for(lambda: page.text() == answer)
    page.by("new").click()
    assert not page.items() and page.by("welcome").is_displayed()
    page.driver.refresh()
    wait_for(lambda: page.by("model").text == "small")
    assert not page.items()


def test_a_keyboard_is_enough(page: Page) -> None:
    page.open()
    active = page.driver.switch_to
    assert active.active_element.get_attribute("id") == "prompt"
    body = active.active_element
    body.send_keys("one", Keys.SHIFT, Keys.ENTER, Keys.NULL, "two")
    assert body.get_property("value") == "one\ntwo"
    seen = []
    for _ in range(4):
        active.active_element.send_keys(Keys.TAB)
        seen.append(active.active_element.get_attribute("id"))
    assert "send" in seen
    page.by("open-settings").send_keys(Keys.ENTER)
    wait_for(lambda: page.by("settings").is_displayed())
    active.active_element.send_keys(Keys.ESCAPE)
    wait_for(lambda: not page.by("settings").is_displayed())
    # the dialog gives the focus back before its event comes
    wait_for(lambda: active.active_element.get_attribute("id") == "prompt")


def test_fits_a_phone(page: Page) -> None:
    page.open()
    size = {"width": 360, "height": 640, "deviceScaleFactor": 2, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        page.ask("say evil")
        script = "return [document.documentElement.scrollWidth, innerWidth, innerHeight]"
        scroll, width, height = page.driver.execute_script(script)
        assert scroll <= width == 360
        send = page.by("send").rect
        assert send["x"] + send["width"] <= width and send["y"] + send["height"] <= height
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_key_is_asked_for_and_kept(make: Make) -> None:
    page = make(keys=("sesame",))
    page.open()
    wait_for(lambda: page.by("settings").is_displayed())
    wait_for(lambda: page.driver.switch_to.active_element.get_attribute("id") == "key")
    page.by("key").send_keys("wrong", Keys.ENTER)
    wait_for(lambda: page.by("settings").is_displayed() and "API key" in page.complaint())
    page.by("key").clear()
    page.by("key").send_keys("sesame", Keys.ENTER)
    wait_for(lambda: page.by("model").text == "small")
    assert page.ask("hi")
    page.driver.refresh()
    wait_for(lambda: page.by("model").text == "small")
    assert page.driver.execute_script("return JSON.stringify(localStorage)").count("sesame") == 0


def test_a_server_that_is_gone(make: Make) -> None:
    page = make()
    page.open()
    wait_for(lambda: page.by("model").text == "small")
    page.served.close()
    page.send("hi")
    wait_for(lambda: "cannot be reached" in page.complaint())
    assert page.by("prompt").get_property("value") == "hi"


def test_nothing_is_loaded_from_elsewhere(page: Page) -> None:
    page.open()
    page.ask("hi")
    script = "return performance.getEntriesByType('resource').map((e) => e.name)"
    names = page.driver.execute_script(script)
    assert names and all(name.startswith(page.served.url) for name in names)
    policy = page.served.client.get("/").headers["Content-Security-Policy"]
    assert "unsafe" not in policy and "default-src 'none'" in policy
