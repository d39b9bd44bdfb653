"""A real browser without a window, for pages: Chromium over its debugging pipe, with the standard library alone."""

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

PROGRAM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
needed = pytest.mark.skipif(not PROGRAM, reason="there is no Chromium on the PATH")
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
SECONDS = 60


@contextlib.contextmanager
def browser(folder):
    """A `Browser` with a new profile below a folder; its processes end with the context."""
    (to_child, own_output), (own_input, from_child) = os.pipe(), os.pipe()
    high = [fcntl.fcntl(number, fcntl.F_DUPFD, 10) for number in (to_child, from_child)]
    command = ["bash", "-c", f'exec "$@" 3<&{high[0]} 4>&{high[1]}', "bash", PROGRAM, *OPTIONS]
    process = subprocess.Popen(
        [*command, f"--user-data-dir={folder}/profile", "about:blank"],
        pass_fds=high,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HOME": str(folder)},
        start_new_session=True,
    )
    for number in (to_child, from_child, *high):
        os.close(number)
    try:
        yield Browser(own_input, own_output)
    finally:
        for number in (own_input, own_output):  # it ends once nobody listens
            os.close(number)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Browser:
    """One tab; `events` is what it reported: (method, parameters)."""

    def __init__(self, own_input, own_output):
        self._input, self._output, self._rest, self._number = own_input, own_output, b"", 0
        self.events, self._session = [], None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method, **parameters):
        """The result of a method of the debugging protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._output, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def _receive(self, seconds=SECONDS):
        deadline = time.monotonic() + seconds
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._input], [], [], max(0, deadline - time.monotonic()))
            assert ready, "the browser does not answer"
            data = os.read(self._input, 2**20)
            assert data, "the browser has ended"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\0")
        answer = json.loads(line)
        if "method" in answer:
            self.events.append((answer["method"], answer["params"]))
        return answer

    def open(self, path):
        """Opens a local file and waits until it is loaded."""
        self.events.clear()
        self.send("Page.navigate", url=Path(path).absolute().as_uri())
        self.until("document.readyState === 'complete'")

    def value(self, expression):
        """What JavaScript in the page gives."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, expression):
        """Waits until an expression holds."""
        deadline = time.monotonic() + SECONDS
        while not self.value(expression):
            assert time.monotonic() < deadline, f"never: {expression}"
            time.sleep(0.02)

    def text(self, selector):
        """The text of an element as it is shown; "" if it is hidden or not there."""
        return self.value(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")

    def press(self, key, *, code=None):
        """Presses and releases a key, named as in KeyboardEvent.key."""
        codes = {"Tab": 9, "PageUp": 33, "PageDown": 34, "End": 35, "Home": 36}
        codes |= {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        words = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key]}
        self.send("Input.dispatchKeyEvent", type="rawKeyDown", **words)
        self.send("Input.dispatchKeyEvent", type="keyUp", **words)

    def place(self, selector, down, right):
        """A point of an element, its height and width being 1, in the window, scrolled into view."""
        box = self.value(
            f"(() => {{const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}});"
            "const b = e.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]})()"
        )
        return {"x": box[0] + right * box[2], "y": box[1] + down * box[3]}

    def point(self, selector, down, right):
        """Moves the mouse there."""
        self.send("Input.dispatchMouseEvent", type="mouseMoved", **self.place(selector, down, right))

    def click(self, selector):
        where = self.place(selector, 0.5, 0.5)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **where)

    def touch(self, selector, down, right):
        """Touches it with a finger."""
        where = self.place(selector, down, right)
        self.send("Input.dispatchTouchEvent", type="touchStart", touchPoints=[where])
        self.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def resize(self, width, height, *, mobile=False):
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        self.send("Emulation.setTouchEmulationEnabled", enabled=mobile)

    def dark(self, dark=True):
        """What the user prefers."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", features=features)

    def picture(self, path):
        """Writes a picture of the window."""
        Path(path).write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))

    def requests(self):
        """The addresses asked for since `open`, without data that the page holds itself."""
        sent = [values["request"]["url"] for method, values in self.events if method == "Network.requestWillBeSent"]
        return [url for url in sent if not url.startswith("data:")]

    def complaints(self):
        """What it said on its console since `open`: errors, and what the page's policy refused."""
        kinds = {"Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"}
        return [values for method, values in self.events if method in kinds]
