"""Minutes of faults: `python -m tests.chaos --seed 1 --minutes 10`; for several seeds in turn."""

from __future__ import annotations

import argparse
import sys

from tests.chaos import report
from tests.chaos.chaos import run
from tests.chaos.checker import Verdict, together
from tests.chaos.schedule import all_faults, schedule
from tests.chaos.world import can_mount
from tests.support.stack import ROOT

OUT = ROOT / "out"
# Of the time of a run; the rest is for the faults.
STORM_SHARE = 0.1


def main() -> int:
    """Returns 0 if all was as promised."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument(
        "--seed",
        type=int,
        nargs="+",
        default=[1],
        help="of the schedule (default 1); several, which may be the same, for as many runs",
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="of each run (default 10)")
    parser.add_argument("--only", default="", help="faults whose name has these words")
    options = parser.parse_args()
    if not can_mount():
        sys.exit("this system lets nobody mount the small disks that a run needs")
    chosen = tuple(fault for fault in all_faults() if options.only in fault.name)
    seconds = 60 * options.minutes
    verdicts: list[Verdict] = []
    for number, seed in enumerate(options.seed, 1):
        name = f"{seed}" if len(options.seed) == 1 else f"{number}-{seed}"
        verdicts.append(
            run(
                schedule(seed, chosen),
                seed=seed,
                seconds=seconds * (1 - 2 * STORM_SHARE),
                storm_seconds=seconds * STORM_SHARE,
                log_file=OUT / "chaos" / f"{name}.jsonl",
            )
        )
        sys.stdout.write(f"seed {seed}\n{report.text(verdicts[-1])}\n")
        sys.stdout.flush()
        told = report.runs(options.seed[:number], options.minutes)
        report.write(together(verdicts), told, OUT / "chaos.md")
    return 1 if any(verdict.failures for verdict in verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())
