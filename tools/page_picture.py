"""Draws the page for the documents: `make page-picture`, with the stack that is running.

It does what a person would do on it, and writes docs/page.webp.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tools.browser import Browser, BrowserError, browser, find_browser
from tools.models import model_dir

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("HuggingFaceTB/SmolLM2-135M-Instruct", "sentence-transformers/all-MiniLM-L6-v2")
PICTURE = "astronaut.png"
# Long enough to convert a model on a busy machine.
_SECONDS = 600.0


def draw(address: str, target: Path, models: Path) -> None:
    """Uses the page at an address, and draws it.

    Raises:
        BrowserError: there is no browser, or the page does not do what it should.
    """
    if not (binary := find_browser()):
        raise BrowserError("there is no Chromium: install it, or name it with CHROMIUM")
    with browser(binary, "--force-device-scale-factor=1", width=1280, height=1000) as page:
        page.open(address)
        for model in MODELS:
            page.element("combobox", "Model to load").write(model)
            page.element("button", "Load").click()
        page.element("combobox", "Model to load").write("")
        _wait(page, "document.querySelectorAll('#models .ready').length >= 2")
        page.element("radio", "Face mesh").click()
        page.element("button", "Picture").choose_file(models / "pictures" / PICTURE)
        page.element("spinbutton", "Tokens at most").write("60")
        page.element("spinbutton", "Temperature").write("0")
        page.element("textbox", "Message").write("What is the capital of France?")
        page.press("Enter")
        page.element("button", "Compare").click()
        for place in ("vision-facts", "chat-facts", "embed-facts"):
            _wait(page, f"document.getElementById('{place}').innerText")
        page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
        page.picture(target)


def _wait(page: Browser, condition: str) -> None:
    holds: Callable[[], bool] = lambda: bool(page.evaluate(condition))  # noqa: E731
    give_up = time.monotonic() + _SECONDS
    while not holds():
        if time.monotonic() > give_up:
            raise BrowserError(f"not within {_SECONDS:g} s: {condition}")
        time.sleep(0.1)


def main() -> int:
    """Draws it; a failure prints one sentence and returns 1."""
    parser = argparse.ArgumentParser(prog="python -m tools.page_picture", description=__doc__)
    parser.add_argument("--port", type=int, default=50051, help="Envoy's port (default 50051)")
    parser.add_argument("--models", type=Path, default=model_dir(), help="the model folder")
    parser.add_argument("--to", type=Path, default=ROOT / "docs" / "page.webp")
    options = parser.parse_args()
    try:
        draw(f"http://localhost:{options.port}/", options.to, options.models)
    except BrowserError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
