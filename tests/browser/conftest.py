"""A headless Chromium, which tells what its page has requested and complained of."""

import json
import shutil
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

WITHIN_S = 30.0
OWN_WORLD = ("data", "blob", "about")  # schemes that reach nobody


def _installed(*names: str) -> str:
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.fail(
            f"{names[0]} is needed to try the pages in a browser: apt-get install chromium chromium-driver",
            pytrace=False,
        )
    return found


class Browser:
    """What a test says to the page and asks of it. Everything waits for what it needs."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def open(self, url: str, *, width: int = 1280, height: int = 900, phone: bool = False) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get(url)

    def all(self, css: str) -> list[WebElement]:
        """At least one."""
        return WebDriverWait(self.driver, WITHIN_S).until(
            lambda driver: driver.find_elements(By.CSS_SELECTOR, css), f"no {css} on the page"
        )

    def click(self, css: str) -> None:
        [element] = self.all(css)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def until(self, script: str, *arguments: Any) -> Any:
        """What the script returns, once that is neither null nor false."""
        return WebDriverWait(self.driver, WITHIN_S).until(lambda _: self.run(script, *arguments), f"never: {script}")

    def complaints(self) -> list[str]:
        """Errors of the console since it was last asked: scripts, the policy, requests that failed."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def requested(self) -> list[str]:
        """Every URL that the page has asked for, wherever it leads."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
        urls = [str(params["request"]["url"]) for params in sent]
        return [url for url in urls if urlsplit(url).scheme not in OWN_WORLD]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chrome]:
    options = ChromeOptions()
    options.binary_location = _installed("chromium", "chromium-browser", "google-chrome")
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking"):
        options.add_argument(argument)  # no sandbox: it cannot be had as root, and the pages are our own
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options, ChromeService(_installed("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def browser(chromium: Chrome) -> Iterator[Browser]:
    """On an empty page, with nothing requested and no complaint yet."""
    opened = Browser(chromium)
    yield opened
    opened.open("about:blank")  # streams of the test end here
    opened.requested()
    opened.complaints()
