"""A headless Chromium that is used as a person would: by the names of what is on the page.

It is driven by the Chrome DevTools Protocol over a pipe, which needs no other package and no port:
https://chromedevtools.github.io/devtools-protocol/. Elements are found by role and name, as screen
readers get them.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import selectors
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# For one answer of the browser on a busy machine, and for what shall appear on the page.
_ANSWER_SECONDS = 60.0
_APPEAR_SECONDS = 60.0
_READ_BYTES = 1 << 20


class BrowserError(Exception):
    """The browser refuses a command, ends, or what is sought does not appear."""


def find_browser() -> str | None:
    """The browser that `CHROMIUM` names, else one of `NAMES`; None if there is none."""
    named = os.environ.get("CHROMIUM")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, NAMES)), None)


@contextlib.contextmanager
def browser(
    binary: str, *arguments: str, width: int = 1280, height: int = 1000
) -> Iterator[Browser]:
    """A browser with one empty page and a profile of its own; both are gone at the end.

    Args:
        binary: of `find_browser`.
        arguments: more of its switches.
        width: of the page, in CSS pixels.
        height: as the width.
    """
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as profile:
        switches = [
            *("--headless", "--remote-debugging-pipe", f"--user-data-dir={profile}"),
            *("--no-first-run", "--disable-gpu", "--disable-dev-shm-usage", "--mute-audio"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *(f"--window-size={width},{height}", "--hide-scrollbars", *arguments),
        ]
        if os.geteuid() == 0:  # its sandbox is not for root
            switches.append("--no-sandbox")
        with _started(binary, switches) as (reading, writing):
            yield Browser(reading, writing)


@contextlib.contextmanager
def _started(binary: str, switches: Sequence[str]) -> Iterator[tuple[int, int]]:
    """The browser as a process group; the ends of its pipes that are ours."""
    commands, ours_out = os.pipe()
    ours_in, answers = os.pipe()
    # It reads descriptor 3 and writes 4: ours must not be in the way of either.
    for_it = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (commands, answers)]
    os.close(commands)
    os.close(answers)
    nowhere = os.open(os.devnull, os.O_RDWR)
    actions = [(os.POSIX_SPAWN_DUP2, nowhere, end) for end in (0, 1, 2)]
    actions += [(os.POSIX_SPAWN_DUP2, end, at) for end, at in zip(for_it, (3, 4), strict=True)]
    process = os.posix_spawn(
        binary, [binary, *switches], dict(os.environ), file_actions=actions, setpgroup=0
    )
    for end in (*for_it, nowhere):
        os.close(end)
    try:
        yield ours_in, ours_out
    finally:
        os.close(ours_out)
        os.close(ours_in)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)


class Browser:
    """The one page of a browser.

    Attributes:
        errors: what the page's console and its policy have complained about.
        requests: the addresses that the page has asked for.
    """

    def __init__(self, reading: int, writing: int) -> None:
        self._reading, self._writing = reading, writing
        self._selector = selectors.DefaultSelector()
        self._selector.register(reading, selectors.EVENT_READ)
        self._received = bytearray()
        self._number = 0
        self._session = ""
        self.errors: list[str] = []
        self.requests: list[str] = []
        target = self.command("Target.createTarget", url="about:blank")["targetId"]
        attached = self.command("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "DOM", "Accessibility"):
            self.command(f"{domain}.enable")

    # Of the protocol

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command.

        Raises:
            BrowserError: the browser refuses it, does not answer in time, or has ended.
        """
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        sent = json.dumps(message).encode() + b"\0"
        while sent:
            sent = sent[os.write(self._writing, sent) :]
        give_up = time.monotonic() + _ANSWER_SECONDS
        while True:
            answer = self._next(give_up, method)
            if answer.get("id") != self._number:
                self._note(answer)
            elif "error" in answer:
                raise BrowserError(f"{method}: {answer['error']['message']}")
            else:
                result: dict[str, Any] = answer["result"]
                return result

    def _next(self, give_up: float, method: str) -> dict[str, Any]:
        while (end := self._received.find(b"\0")) < 0:
            if not self._selector.select(max(0.0, give_up - time.monotonic())):
                raise BrowserError(f"{method} was not answered within {_ANSWER_SECONDS:g} s")
            if not (data := os.read(self._reading, _READ_BYTES)):
                raise BrowserError(f"the browser has ended before it answered {method}")
            self._received += data
        message: dict[str, Any] = json.loads(self._received[:end])
        del self._received[: end + 1]
        return message

    def _note(self, event: dict[str, Any]) -> None:
        method, parameters = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Runtime.consoleAPICalled" and parameters["type"] == "error":
            said = (str(one.get("value", one.get("description"))) for one in parameters["args"])
            self.errors.append(" ".join(said))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            entry = parameters["entry"]
            self.errors.append(f"{entry['text']} {entry.get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])

    # Of the page

    def open(self, address: str) -> None:
        """Opens an address."""
        failed = self.command("Page.navigate", url=address).get("errorText")
        if failed:
            raise BrowserError(f"{address}: {failed}")
        self._wait("the page", lambda: self.evaluate("document.readyState") == "complete")

    def evaluate(self, expression: str) -> Any:
        """The JSON value of an expression, or of its promise."""
        return self._value(
            self.command(
                "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
            )
        )

    def elements(self, role: str, name: str | None = None) -> list[Element]:
        """What has this role and this whole name; by default whatever its name."""
        root = self.command("DOM.getDocument", depth=0)["root"]["backendNodeId"]
        nodes = self.command("Accessibility.queryAXTree", backendNodeId=root, role=role)["nodes"]
        found = [
            Element(self, node["backendDOMNodeId"], str(node.get("name", {}).get("value", "")))
            for node in nodes
            if not node.get("ignored") and "backendDOMNodeId" in node
        ]
        return [one for one in found if name in (None, one.name)]

    def element(self, role: str, name: str) -> Element:
        """The one that has this role and this name, once it is there."""
        found = self._wait(f"{role} {name!r}", lambda: self.elements(role, name))
        if len(found) > 1:
            raise BrowserError(f"there are {len(found)} of {role} {name!r}")
        return found[0]

    def unnamed(self) -> list[str]:
        """Roles of what takes input and has no name."""
        inputs = {"button", "textbox", "combobox", "spinbutton", "radio", "link", "progressbar"}
        nodes = self.command("Accessibility.getFullAXTree")["nodes"]
        return [
            node["role"]["value"]
            for node in nodes
            if not node.get("ignored")
            and node["role"]["value"] in inputs
            and not node.get("name", {}).get("value")
        ]

    def dark(self, dark: bool) -> None:
        """Whether the person prefers dark colours."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])

    def press(self, key: str) -> None:
        """Presses a key such as "Enter" or "Tab", or types one character."""
        code = {"Enter": ("\r", 13), "Tab": ("", 9), "Space": (" ", 32)}
        text, number = code.get(key, (key, 0))
        name = {"Space": " "}.get(key, key)
        keys = {"key": name, "text": text, "windowsVirtualKeyCode": number}
        self.command("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **keys)
        self.command("Input.dispatchKeyEvent", type="keyUp", key=name)

    def picture(self, path: Path, *, whole: bool = True) -> None:
        """Writes a picture of the page; the ending says its format: png, jpeg or webp."""
        kind = path.suffix.lstrip(".")
        more = {} if kind == "png" else {"quality": 82}
        made = self.command(
            "Page.captureScreenshot", format=kind, captureBeyondViewport=whole, **more
        )
        path.write_bytes(base64.b64decode(made["data"]))

    def _wait(self, what: str, probe: Callable[[], T]) -> T:
        give_up = time.monotonic() + _APPEAR_SECONDS
        while not (value := probe()):
            if time.monotonic() > give_up:
                raise BrowserError(f"{what} has not appeared within {_APPEAR_SECONDS:g} s")
            time.sleep(0.05)
        return value

    def _value(self, answer: dict[str, Any]) -> Any:
        if "exceptionDetails" in answer:
            raise BrowserError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")


class Element:
    """Something on the page.

    Attributes:
        name: as screen readers say it.
    """

    def __init__(self, page: Browser, node: int, name: str) -> None:
        self._page = page
        self._node = node
        self.name = name

    @property
    def text(self) -> str:
        """What is seen of its text."""
        return str(self.call("function() { return this.innerText; }"))

    def call(self, function: str) -> Any:
        """The JSON value of a function whose `this` is the element."""
        resolved = self._page.command("DOM.resolveNode", backendNodeId=self._node)
        found = self._page.command(
            "Runtime.callFunctionOn",
            objectId=resolved["object"]["objectId"],
            functionDeclaration=function,
            returnByValue=True,
        )
        return found["result"].get("value")

    def click(self) -> None:
        """Clicks into its middle."""
        self._page.command("DOM.scrollIntoViewIfNeeded", backendNodeId=self._node)
        (quad, *_) = self._page.command("DOM.getContentQuads", backendNodeId=self._node)["quads"]
        x, y = sum(quad[0::2]) / 4, sum(quad[1::2]) / 4
        for kind in ("mousePressed", "mouseReleased"):
            self._page.command(
                "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1
            )

    def write(self, text: str) -> None:
        """Replaces what is in it."""
        self._page.command("DOM.focus", backendNodeId=self._node)
        self.call("function() { this.select(); }")
        self._page.command("Input.insertText", text=text)

    def choose(self, value: str) -> bool:
        """Chooses one of a list, and returns whether the list has it."""
        of_list = f"[...this.options].find((one) => one.value === {json.dumps(value)})"
        return bool(
            self.call(
                f"function() {{ const found = {of_list}; if (!found) return false; "
                "found.selected = true; this.dispatchEvent(new Event('change')); return true; }"
            )
        )

    def choose_file(self, path: Path) -> None:
        """Chooses a file."""
        self._page.command(
            "DOM.setFileInputFiles", files=[str(path.resolve())], backendNodeId=self._node
        )
