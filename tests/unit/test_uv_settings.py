"""pip's settings as uv's."""

from __future__ import annotations

import pytest

from tools.uv_settings import of_this_pip, settings

LISTED = """\
:env:.index-url='https://env.example/simple'
:env:.timeout='180'
global.cert='/etc/ssl/ca.crt'
global.extra-index-url='https://one.example/simple https://two.example/simple'
global.find-links='/opt/wheels /opt/more'
global.index-url="https://file.example/it's"
"""


def test_uv_asks_where_pip_would() -> None:
    assert settings(LISTED) == {
        "UV_DEFAULT_INDEX": "https://env.example/simple",
        "UV_FIND_LINKS": "/opt/wheels,/opt/more",
        "UV_INDEX": "https://one.example/simple https://two.example/simple",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "SSL_CERT_FILE": "/etc/ssl/ca.crt",
    }


def test_the_settings_of_pip_are_those_of_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://env.example/simple")
    assert of_this_pip()["UV_DEFAULT_INDEX"] == "https://env.example/simple"


def test_a_pip_without_settings() -> None:
    assert settings("") == {"UV_INDEX_STRATEGY": "unsafe-best-match"}
