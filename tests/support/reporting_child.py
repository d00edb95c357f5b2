"""A child process for tests of `spawn`: the model id in its command says what it does."""

from __future__ import annotations

import os
import signal
import sys
import time

from shared.process import exit_if_out_of_memory
from text_svc.processes.specs import ChildSpec, WorkerReport


def main() -> None:
    """Entry point; the one argument is a `ChildSpec` as JSON."""
    spec = ChildSpec.model_validate_json(sys.argv[1])
    match spec.model_id:
        case "reports":
            spec.send(
                WorkerReport(weights_bytes=int(os.environ["RAM"]), vram_bytes=spec.parent_pid)
            )
        case "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        case "gets no memory":
            exit_if_out_of_memory(MemoryError())
        case "crashes":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "hangs":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        case "floods":
            spec.send(WorkerReport(error_reason="INVALID_MODEL", error="x" * (4 << 20)))
        case words if words.startswith("says "):
            print(words, file=sys.stderr, flush=True)
            os.abort()
        case reason:
            spec.send(WorkerReport(error_reason=reason, error="a sentence"))
    time.sleep(60)


if __name__ == "__main__":
    main()
