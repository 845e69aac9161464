"""A headless Chromium driven over the DevTools protocol, through pipes: window sizes below Chromium's own least, errors
of the console, requests, screenshots.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def find() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One page; a context manager that ends the browser.

    Attributes:
        errors: what the console was told and what was thrown, in words.
        requests: every address asked for.
    """

    def __init__(self, executable: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._number, self._events = 0, []
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()

        def as_three_and_four() -> None:  # where --remote-debugging-pipe reads and writes
            here = os.dup(to_read), os.dup(to_write)
            os.dup2(here[0], 3)
            os.dup2(here[1], 4)

        flags = (
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--remote-debugging-pipe",
        )
        self._process = subprocess.Popen(
            [executable, *flags, f"--user-data-dir={self._folder.name}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=False,
            preexec_fn=as_three_and_four,
        )
        os.close(to_read)
        os.close(to_write)
        self._answers = os.fdopen(self._from, "rb", buffering=0)
        self._rest = b""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Page:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._answers.close()
        os.close(self._to)
        self._folder.cleanup()

    def open(self, path: Path, *, width: int, height: int = 844, dark: bool = False) -> None:
        """Shows a file in a window that many CSS pixels wide, and waits until it is loaded."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self._events.clear()
        failed = self.call("Page.navigate", url=path.resolve(strict=True).as_uri()).get("errorText")
        assert not failed, failed
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._take()

    def value(self, expression: str) -> Any:
        """What JavaScript says."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def picture(self, path: Path, *, height: int | None = None, top: int = 0) -> None:
        """The page from `top` on, to its end or so many pixels."""
        width = self.value("innerWidth")
        height = height or self.value("document.documentElement.scrollHeight") - top
        clip = {"x": 0, "y": top, "width": width, "height": height, "scale": 1}
        made = self.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(made["data"]))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": parameters}
        if not method.startswith("Target."):
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._take()
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def _take(self) -> dict[str, Any]:
        """The next message; an event is noted."""
        while b"\0" not in self._rest:
            read = self._answers.read(1 << 20)
            if not read:
                raise RuntimeError("the browser ended")
            self._rest += read
        text, self._rest = self._rest.split(b"\0", 1)
        message = json.loads(text)
        what = message.get("params", {})
        match message.get("method"):
            case "Runtime.consoleAPICalled" if what["type"] in ("error", "warning", "assert"):
                self.errors.append(" ".join(str(each.get("value")) for each in what["args"]))
            case "Runtime.exceptionThrown":
                self.errors.append(what["exceptionDetails"]["text"])
            case "Log.entryAdded" if what["entry"]["level"] in ("error", "warning"):
                self.errors.append(what["entry"]["text"])
            case "Network.requestWillBeSent":
                self.requests.append(what["request"]["url"])
        if "method" in message:
            self._events.append(message)
        return message
