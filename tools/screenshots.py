"""Takes the screenshots of the documentation: the sandbox's page, after a real forwarder has mailed a conversation.

`screenshots.py [FOLDER]` writes them to docs/images, or elsewhere to be looked at. It needs Debian's chromium and
chromium-driver.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from sandbox import Sandbox  # noqa: E402 - found through the line above

TOKEN = "0123456789abcdef0123456789abcdef"  # noqa: S105 - of a forwarder that lives for seconds
OFFICE, ANN, BOB = "18185550199", "18185550101", "12125550123"
TALK = [
    (ANN, "Hi! Are you open on Saturday?", True),
    (BOB, "Is table 4 free at 19:30?", True),
    (ANN, "Yes, from 9 to 1. See you then!", False),
    (ANN, "Perfect, thank you 😊", True),
]
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


@contextlib.contextmanager
def forwarder(sandbox: Sandbox, folder: str) -> Iterator[str]:
    """A forwarder that mails to the sandbox's mailbox, and the address for its postbacks."""
    settings = {
        "FORWARDER_PORT": "0",
        "FORWARDER_ADMIN_PORT": "0",
        "FORWARDER_STATE_DIR": folder,
        "FORWARDER_TOKENS": TOKEN,
        "FORWARDER_SMTP_HOST": "127.0.0.1",
        "FORWARDER_SMTP_PORT": str(sandbox.smtp_port),
        "FORWARDER_SMTP_SECURITY": "none",
        "FORWARDER_MAIL_FROM": "texts@example.com",
        "FORWARDER_MAIL_TO": "office@example.com",
    }
    command = [sys.executable, "-m", "forwarder"]
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | settings, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield f"{_address(process)}/postback/{TOKEN}"
        finally:
            process.terminate()
            process.communicate()


def _address(process: subprocess.Popen[str]) -> str:
    for line in process.stderr or ():
        if "forwarder.ready" in line:
            return line.partition("public=")[2].split()[0]
    raise SystemExit("the forwarder did not start")


@contextlib.contextmanager
def browser(width: int, height: int) -> Iterator[webdriver.Chrome]:
    """A Chromium without a past."""
    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = "/usr/bin/chromium"
        for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options, webdriver.ChromeService("/usr/bin/chromedriver"))
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        try:
            yield driver
        finally:
            driver.quit()


def play(sandbox: Sandbox, endpoint: str) -> None:
    """A conversation of two people with the office, and a call that nobody asked to hear about."""
    sandbox.create_subscription(endpoint=endpoint, trigger_event="INBOUND_TEXT_FINISHED", filter={"to_number": OFFICE})
    last = 0
    sandbox.make_call(BOB, OFFICE, duration=42)
    for person, message, inbound in TALK:
        numbers = (person, OFFICE) if inbound else (OFFICE, person)
        sandbox.send_text(message, *numbers, inbound=inbound)
        if inbound:
            last = sandbox.wait_for_mail(last)["id"]


def shoot(url: str, path: Path, width: int, height: int, *, dark: bool = False) -> None:
    """One picture of the page as it opens."""
    with browser(width, height) as driver:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        driver.get(url)
        wait = WebDriverWait(driver, 10)
        wait.until(lambda found: found.find_element(By.ID, "live").text == "Live")
        driver.execute_script("document.activeElement.blur(); scrollTo(0, 0)")
        wait.until(lambda found: found.execute_script("return document.getAnimations().length") == 0)
        driver.save_screenshot(str(path))
    print(path, path.stat().st_size)


def main() -> None:
    """Play and shoot."""
    folder = Path(sys.argv[1]) if sys.argv[1:] else ROOT / "docs" / "images"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as state, Sandbox() as sandbox, forwarder(sandbox, state) as endpoint:
        play(sandbox, endpoint)
        with urllib.request.urlopen(f"{sandbox.url}/mailbox/threads", timeout=10) as answer:  # noqa: S310 - our own
            assert len(json.load(answer)["threads"]) == 2  # noqa: S101, PLR2004 - Ann's and Bob's
        shoot(sandbox.url, folder / "sandbox.png", 1360, 800)
        shoot(sandbox.url, folder / "sandbox-phone.png", 400, 760, dark=True)


if __name__ == "__main__":
    main()
