"""A browser without a screen and without a network, for tests of the page."""

import shutil
from pathlib import Path

import pytest

DRIVER = shutil.which("chromedriver")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def start(downloads: Path, width: int = 1200, height: int = 1000, dark: bool = False):
    """-> a selenium driver, or skips. Nothing but 127.0.0.1 has an address."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if not (DRIVER and CHROMIUM):
        pytest.skip("chromium or chromedriver is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--window-size={width},{height}",
        *(["--force-dark-mode"] if dark else []),
    ):
        options.add_argument(word)
    options.add_experimental_option(
        "prefs",
        {"download.default_directory": str(downloads), "download.prompt_for_download": False},
    )
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    return webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
