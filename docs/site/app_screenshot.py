"""Asks the web app about the handbook of the examples, and takes its picture: app.png.

python docs/site/app_screenshot.py

Needs Playwright, and Debian's Chromium.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "concepts" / "pictures" / "app.png"
DOCUMENT = "examples/documents/handbook.pdf"
QUESTION = "What is the height of the dome?"
COMMAND = ("app", "--no-browser", "--port", "0", DOCUMENT)
SIZE = {"width": 1440, "height": 860}


def main() -> None:
    """Serve the app, use it, and write the picture.

    Raises:
        SystemExit: Chromium is not installed.
    """
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("chromium is not installed")
    places = [str(ROOT), str(ROOT / "integrations"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "selfextend_rag", *COMMAND]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(
                    executable_path=chromium, args=["--no-sandbox"]
                )
                page = browser.new_page(viewport=SIZE, reduced_motion="reduce")
                page.goto(address)
                use(page)
                page.screenshot(path=PICTURE)
                browser.close()
        finally:
            server.terminate()


def use(page: Page) -> None:
    """Ask the question, and open the first passage of its evidence."""
    page.wait_for_selector(".bar-picture")
    page.fill("#question", QUESTION)
    page.press("#question", "Enter")
    page.locator(".passage").first.click()
    expect(page.locator("mark.current")).to_be_in_viewport()
    page.wait_for_selector(".bar-picture")


if __name__ == "__main__":
    main()
