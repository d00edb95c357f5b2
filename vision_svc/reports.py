"""Keeps MediaPipe from reporting to its makers."""

from __future__ import annotations

import os

# Nobody listens there; a connection is refused at once.
NOWHERE = "http://127.0.0.1:1"


def refuse_reports(proxy: str = NOWHERE) -> None:
    """Sends MediaPipe's reports to `proxy`; call it before the first task is closed.

    MediaPipe 1.2.2 reports to a Google host by libcurl whenever a task closes, has no switch for
    it, and waits where the host's name is not answered. libcurl goes by the environment's proxy;
    nothing else in this process uses one.
    """
    for name in ("no_proxy", "NO_PROXY"):
        os.environ.pop(name, None)
    for name in ("https_proxy", "HTTPS_PROXY"):
        os.environ[name] = proxy
