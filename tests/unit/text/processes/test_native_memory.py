"""Memory that a process gives back, also where the kernel shows it nothing of itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.stack import ROOT

_SANDBOXED = """
import sys
from pathlib import Path
from text_svc.processes import sandbox
from text_svc.processes.native_memory import let_go_of_files, trim
sandbox.enter(reads=[Path(sys.argv[1])])
let_go_of_files(Path(sys.argv[1]))
trim()
print("went on")
"""


def test_a_process_in_a_sandbox_goes_on(tmp_path: Path) -> None:
    said = subprocess.run(
        [sys.executable, "-c", _SANDBOXED, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.stdout == "went on\n", said.stderr
