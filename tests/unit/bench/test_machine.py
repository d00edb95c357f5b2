"""Benchmarks refuse a busy machine, or mark what they have measured on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.bench import machine
from tests.bench.machine import BUSY, Machine, quiet_machine
from tests.bench.results import parser_of, publish

Set = Callable[..., None]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Set:
    """Sets what the machine shows: effective cores before and after, and others' CPU seconds."""

    def show(*effective: float, others: float = 0.0) -> None:
        given: Iterator[float] = iter(effective)
        used = iter((0.0, others))
        clock = iter((0.0, 10.0))
        monkeypatch.setattr(machine, "named_cores", lambda: 2)
        monkeypatch.setattr(machine, "effective_cores", lambda: next(given))
        monkeypatch.setattr(machine, "_used_by_others", lambda: next(used))
        monkeypatch.setattr(machine, "time", SimpleNamespace(monotonic=lambda: next(clock)))

    return show


def test_a_quiet_machine_is_described(seen: Set) -> None:
    seen(1.95, 2.02, others=0.4)
    with quiet_machine() as found:
        pass
    told = found.heading()
    assert "Effective cores 1.95 before, 2.02 after, of 2;" in told
    assert "other processes used 0.04 cores." in told
    assert "2 cores" in told
    assert "grpcio" in told
    assert BUSY not in told


def test_a_busy_machine_is_refused_before_anything_is_measured(seen: Set) -> None:
    seen(1.89)
    measured = False
    refused = pytest.raises(SystemExit, match=r"1\.89 effective cores before, fewer than 1\.90")
    with refused, quiet_machine():
        measured = True
    assert not measured


@pytest.mark.parametrize(
    ("after", "others", "said"),
    [
        (1.5, 0.0, "1.50 effective cores after"),
        (2.0, 3.0, "other processes used 0.30 cores, more than 0.10"),
    ],
)
def test_a_machine_that_became_busy_is_refused_afterwards(
    seen: Set, after: float, others: float, said: str
) -> None:
    seen(2.0, after, others=others)
    measured = False
    with pytest.raises(SystemExit, match=said), quiet_machine():
        measured = True
    assert measured


def test_figures_of_a_busy_machine_are_marked(seen: Set, tmp_path: Path) -> None:
    seen(1.2, 1.3, others=15.0)
    options = parser_of("About.").parse_args(["--busy", "--out", str(tmp_path)])
    with quiet_machine(busy=options.busy) as found:
        pass
    publish(options.out, "name", found, {"figure": 1}, "| a table |")
    table = (tmp_path / "name.md").read_text()
    assert f"**{BUSY}**: 1.20 effective cores before" in table
    assert table.endswith("| a table |\n")
    assert '"figure": 1' in (tmp_path / "name.json").read_text()


def test_where_it_does_not_matter_only_the_machine_is_told() -> None:
    assert "ffective" not in Machine().heading()
