"""The tables of the benchmark of generation, with peers that answer at once."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from tests.bench.text_report import table
from tests.bench.text_run import run
from tests.bench.text_types import Stretch, system_prompt


class Steady:
    """A peer whose tokens come at fixed times: one more second for each token.

    Args:
        name: of the peer.
        first: seconds to the first token; a tenth of it after a system prompt that it knows.
    """

    client = "in process"

    def __init__(self, name: str, first: float) -> None:
        self.name = name
        self._first, self._known = first, set[str]()

    async def start(self) -> None:
        if self.name == "broken":
            raise RuntimeError("no such library")

    def pids(self) -> Sequence[int]:
        return [1]

    async def stretch(self, questions: Sequence[str], tokens: int, system: str = "") -> Stretch:
        first = self._first / 10 if system and system in self._known else self._first
        self._known.add(system)
        return Stretch([[first + number for number in range(tokens)] for _ in questions])

    async def stop(self) -> None:
        pass


async def test_rates_ratios_repeated_prompts_memory_and_who_is_left_out() -> None:
    peers = {"one": Steady("one", 1.0), "two": Steady("two", 3.0), "three": Steady("broken", 1.0)}
    options = Namespace(rounds=3, callers=(1, 4), tokens=2)
    report = await run(peers, [("one", "two")], options, memory=lambda _: 70.0)
    told = table(report)
    # Two tokens a caller within 2 and 4 seconds.
    assert "| one (in process) | 1 | 4 |" in told
    assert "| one (in process) by two (in process) | 2.00, 0.33 | 2.00, 0.33 |" in told
    assert "| two (in process) | 3000 | 300 | 10% |" in told
    assert "| two (in process) | 70 |" in told
    assert "Left out: broken: RuntimeError: no such library." in told


def test_system_prompts_share_no_beginning() -> None:
    one, two = system_prompt(1), system_prompt(2)
    assert one.split()[0] != two.split()[0]
    assert len(one.split()) > 400
