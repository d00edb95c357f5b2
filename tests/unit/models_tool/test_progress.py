"""What a log says while models are fetched."""

import pytest

from tests.unit.models_tool.conftest import Lines
from tools.models import progress


@pytest.mark.parametrize(
    ("interval", "between"), [(0.0, ["model.bin: 1.0 MB of 4.0 MB"]), (60.0, [])]
)
def test_a_long_download_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, interval: float, between: list[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_INTERVAL_SECONDS", interval)
    lines = Lines()
    with lines.task("model.bin", 4_000_000) as update:
        update(1_000_000)
    first, *middle, last = lines.said
    assert first == "model.bin (4.0 MB) ..."
    assert middle == between
    assert last.startswith("model.bin: done in")


def test_work_of_unknown_size_has_no_lines_between() -> None:
    lines = Lines()
    with lines.task("model.bin") as update:
        update(1_000_000)
    assert len(lines.said) == 2
