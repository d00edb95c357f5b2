"""Starts http_svc: `python -m http_svc`."""

from __future__ import annotations

import uvloop

from http_svc.serving import run
from http_svc.settings import HttpSettings
from shared.rpc.server import main

if __name__ == "__main__":
    main("http_svc", HttpSettings, run, uvloop.new_event_loop)
