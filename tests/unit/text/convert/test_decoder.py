"""The check of a converted decoder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.architectures.builders import build
from tests.architectures.mappings import Case
from text_svc.convert.decoder import convert
from text_svc.convert.refused import RefusedError


def test_a_graph_whose_positions_go_wrong_later_is_refused(tmp_path: Path) -> None:
    """OpenVINO's MPT gives the tokens of torch at first; one prompt of 8 and 8 tokens passes."""
    case = Case("text-generation", "MptForCausalLM", "mpt", "openvino")
    build(case, tmp_path / "model")
    (tmp_path / "converted").mkdir()
    with pytest.raises(
        RefusedError, match=r"token \d+ after a prompt of \d+ differs from the original's"
    ):
        convert(tmp_path / "model", tmp_path / "converted", "float")
