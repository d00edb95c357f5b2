"""The filter of connections in envoy.yaml is what its source compiles to."""

from __future__ import annotations

import base64

from stack.envoy_config import load_config
from tools.connections import compiled


def test_the_compiled_filter_is_that_of_its_source() -> None:
    for listener in load_config(tls=True, keys=True, names=True)["static_resources"]["listeners"]:
        if listener["name"] == "metrics":
            continue
        first = listener["filter_chains"][0]["filters"][0]["typed_config"]["config"]
        code = first["vm_config"]["code"]["local"]["inline_bytes"]
        assert base64.b64decode(code, validate=True) == compiled()
