"""The settings of services: their names and their help."""

from __future__ import annotations

import sys

import pytest

from model_mgmt_svc.settings import ModelMgmtSettings
from shared.settings import ServerSettings, read_settings
from text_svc.settings import TextSettings
from vision_svc.settings import VisionSettings


@pytest.mark.parametrize("kind", [ModelMgmtSettings, TextSettings, VisionSettings])
def test_help_lists_every_variable_with_its_default(
    kind: type[ServerSettings], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["service", "--help"])
    with pytest.raises(SystemExit) as ended:
        read_settings(kind)
    assert not ended.value.code
    text = capsys.readouterr().out
    assert text.count("=") >= len(kind.model_fields)
    assert "MAX_CONCURRENT_CALLS=1024" in text
    assert "      gRPC port." in text
