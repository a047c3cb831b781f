"""Headless Chromium for the tests of pages: the browser and the ChromeDriver on the path."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--hide-scrollbars",
)
REMEDY = "apt-get install chromium chromium-driver"
WAIT = 60.0  # seconds for a page to become ready


class Browser:
    """One page in a browser, with what it has requested and logged."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(
        self, page: Path, fragment: str = "", *, width: int = 1280, dark: bool = False
    ) -> None:
        """Open a file at a width in CSS pixels, in a colour scheme, and wait until it is ready."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        self.scheme(dark=dark)
        self.driver.get("about:blank")  # a change of the fragment alone would not load the page
        self.driver.get(page.resolve().as_uri() + (f"#{fragment}" if fragment else ""))
        self.wait("return document.readyState === 'complete'")

    def scheme(self, *, dark: bool) -> None:
        """Set the reader's colour scheme."""
        scheme = "dark" if dark else "light"
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.devtools("Emulation.setEmulatedMedia", {"features": features})

    def devtools(self, command: str, arguments: dict[str, Any]) -> Any:
        """Send a command of the DevTools protocol."""
        return self.driver.execute_cdp_cmd(command, arguments)

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a script in the page, as the body of a function, and return its value."""
        return self.driver.execute_script(script, *arguments)

    def wait(self, script: str, *arguments: Any) -> Any:
        """Run a script until it returns something true, and return that."""
        end = time.monotonic() + WAIT
        while not (found := self.run(script, *arguments)):
            if time.monotonic() > end:
                raise TimeoutError(f"the page did not get there in {WAIT:g} s: {script}")
            time.sleep(0.05)
        return found

    def press(self, selector: str, *keys: str) -> None:
        """Focus an element and press keys, by the names that the keyboard standard has."""
        self.run("document.querySelector(arguments[0]).focus()", selector)
        for key in keys:
            for kind in ("keyDown", "keyUp"):
                code = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key], "type": kind}
                text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
                self.devtools("Input.dispatchKeyEvent", code | text)

    def problems(self) -> list[str]:
        """Return errors and warnings of the console since the last call."""
        entries = self.driver.get_log("browser")
        return [entry["message"] for entry in entries if entry["level"] in ("WARNING", "SEVERE")]

    def requests(self) -> list[str]:
        """Return addresses that were requested since the last call, without data and blob ones."""
        events = [json.loads(e["message"])["message"] for e in self.driver.get_log("performance")]
        asked = [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in asked if not url.startswith(("data:", "blob:", "about:"))]

    def names(self) -> dict[str, str]:
        """Return the accessible name of every control, by role and number."""
        nodes = self.devtools("Accessibility.getFullAXTree", {})["nodes"]
        found = {}
        for node in nodes:
            properties = {p["name"]: p["value"].get("value") for p in node.get("properties", [])}
            role = node.get("role", {}).get("value")
            if properties.get("focusable") and not node["ignored"] and role in CONTROLS:
                found[f"{role} {len(found)}"] = node.get("name", {}).get("value", "")
        return found

    def overflow(self) -> int:
        """Return by how many pixels the page is wider than the window."""
        page = self.run(
            "const e = document.documentElement; return Math.max(e.scrollWidth,"
            "document.body.scrollWidth) - e.clientWidth"
        )
        return int(page)

    def picture(self, path: Path | None = None) -> bytes:
        """Return the visible part of the page as PNG, or write the whole page to a file."""
        # Beyond the viewport in either case: a picture of the viewport alone waits for a frame,
        # which a page that does not change may never draw.
        asked: dict[str, Any] = {"captureBeyondViewport": True}
        if path is None:
            width = self.run("return innerWidth")
            asked["clip"] = {"x": 0, "y": 0, "width": width, "height": 900, "scale": 1}
        taken = base64.b64decode(self.devtools("Page.captureScreenshot", asked)["data"])
        if path is not None:
            path.write_bytes(taken)
        return taken


CONTROLS = ("button", "combobox", "link", "region", "slider")
KEYS = {"ArrowRight": 39, "ArrowLeft": 37, "ArrowUp": 38, "Home": 36, "End": 35, "Enter": 13}


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Start the browser with an empty profile; skip the test where there is none."""
    selenium = pytest.importorskip("selenium", reason="selenium is not installed")
    del selenium
    paths = [shutil.which(name) for name in CHROMIUM]
    binary = next((path for path in paths if path), None)
    chromedriver = shutil.which("chromedriver")
    if binary is None or chromedriver is None:
        pytest.skip(f"no chromium and chromedriver on the path; {REMEDY}")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = binary
        for option in (*OPTIONS, f"--user-data-dir={profile}"):
            options.add_argument(option)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            driver = webdriver.Chrome(options=options, service=Service(chromedriver))
            try:
                browser = Browser(driver)
                driver.get("about:blank")
                browser.requests()  # those of the browser's own first page
                yield browser
            finally:
                driver.quit()
