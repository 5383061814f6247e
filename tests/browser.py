"""A real headless Chromium for tests, driven through pipes by its own protocol (--remote-debugging-pipe): no other client.

Source of the protocol: https://chromedevtools.github.io/devtools-protocol/. A message is JSON, and ends with a NUL byte.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_TIMEOUT_S = 90
#: The code of each key that tests press, and the text that it enters.
_KEYS = {"Tab": (9, ""), "Enter": (13, "\r"), "Space": (32, " ")}


def chromium() -> str:
    """Return the path of the browser; skip the test where there is none."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip("Chromium is not installed")
    return found


class Browser:
    """One page of a headless Chromium, until the end of the `with` block."""

    def __init__(self, profile: Path, width: int = 1100, height: int = 900) -> None:
        to_it, self._out = os.pipe()
        self._in, from_it = os.pipe()
        # Chromium reads commands from descriptor 3 and writes answers to 4.
        line = f'exec "$0" "$@" 3<&{to_it} 4>&{from_it}'
        options = [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
            "--remote-debugging-pipe", f"--user-data-dir={profile}", f"--window-size={width},{height}", "about:blank",
        ]  # fmt: skip
        words = ["bash", "-c", line, chromium(), *options]
        self._process = subprocess.Popen(
            words, pass_fds=(to_it, from_it), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        os.close(to_it)
        os.close(from_it)
        self._rest = b""
        self._number = 0
        self._session = ""
        self.requests: list[str] = []  # addresses that the page has asked for
        self.errors: list[str] = []  # of its scripts

    def __enter__(self) -> Browser:
        try:
            targets = self.send("Target.getTargets")["targetInfos"]
            page = next(target["targetId"] for target in targets if target["type"] == "page")
            self._session = self.send("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Network"):
                self.send(f"{domain}.enable")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._out)
        os.close(self._in)
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            found = self._receive()
            if found.get("id") == self._number:
                assert "error" not in found, f"{method}: {found['error']}"
                return dict(found["result"])

    def _receive(self) -> dict[str, Any]:
        give_up = time.monotonic() + _TIMEOUT_S
        poll = select.poll()  # select() refuses descriptors above 1023
        poll.register(self._in, select.POLLIN)
        while b"\0" not in self._rest:
            left = give_up - time.monotonic()
            assert left > 0, f"Chromium has not answered for {_TIMEOUT_S} s"
            if poll.poll(left * 1000):
                data = os.read(self._in, 1 << 20)
                assert data, "Chromium has ended"
                self._rest += data
        text, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(text)
        if found.get("method") == "Network.requestWillBeSent":
            self.requests.append(found["params"]["request"]["url"])
        if found.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(found["params"]["exceptionDetails"]))
        return found

    def open(self, path: Path) -> None:
        """Load a file, and wait until it is complete."""
        self.send("Page.navigate", url=path.as_uri())
        give_up = time.monotonic() + _TIMEOUT_S
        while self.evaluate("document.readyState + location.href") != f"complete{path.as_uri()}":
            assert time.monotonic() < give_up, f"{path} is not loaded"
            time.sleep(0.05)

    def evaluate(self, script: str) -> Any:
        """Return the value of a JavaScript expression."""
        found = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """Press and release a key."""
        code, text = _KEYS[key]
        common = {"key": " " if key == "Space" else key, "code": key, "windowsVirtualKeyCode": code}
        self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    def type(self, text: str) -> None:
        """Enter text where the focus is."""
        self.send("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        """Click the middle of an element with the mouse."""
        middle = (
            "e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect(); "
            "return [r.x + r.width / 2, r.y + r.height / 2]"
        )
        x, y = self.evaluate(f"(e => {{ {middle} }})(document.querySelector({selector!r}))")
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def emulate(self, scheme: str = "light", media: str = "screen", width: int = 0) -> None:
        """Show the page in a dark or light scheme, as on paper (media="print"), or in a narrow window."""
        self.send("Emulation.setEmulatedMedia", media=media, features=[{"name": "prefers-color-scheme", "value": scheme}])
        if width:
            self.send("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)

    def screenshot(self, path: Path, clip: tuple[int, int, int, int] | None = None) -> None:
        """Write a PNG of the window, or of a part (x, y, width, height) of the page."""
        more: dict[str, Any] = {}
        if clip:
            more = {"captureBeyondViewport": True, "clip": dict(zip(("x", "y", "width", "height"), clip), scale=1)}
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", **more)["data"]))

    def pdf(self, path: Path) -> None:
        """Print the page into a PDF."""
        path.write_bytes(base64.b64decode(self.send("Page.printToPDF", printBackground=False)["data"]))
