"""The process of `fork_server`: imports libraries once, and forks itself for each child.

It reads nothing of a model, and has one thread. Requests come on a Unix socket, its stdin: JSON
with `module`, `spec` and `environment`, and with it the descriptors of the child's report and of
its stderr. The answer is the process id of the child, or an error number below 0.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import struct
import sys
import tempfile
from dataclasses import dataclass
from importlib import import_module

from shared import landlock
from shared.process import die_with_parent
from text_svc.processes.forking import fork_beside, show_command, threads

# What children import that are forked. Named as text: this stands below them.
PRELOADED = (
    "text_svc.inspection.__main__",
    "text_svc.worker.__main__",
    "text_svc.worker.pipelines.text_generation",
    "text_svc.worker.pipelines.feature_extraction",
    "text_svc.worker.generation.chat_template_process",
    "text_svc.worker.engines.openvino",
    "text_svc.worker.engines.openvino_process",
    "text_svc.worker.embeddings.openvino",
)
MAX_REQUEST_BYTES = 1 << 18
ANSWER = struct.Struct("q")
# Its last argument is this long, so that there is room for the command of a child.
ROOM = " " * 8192


@dataclass(frozen=True)
class Job:
    """What a child runs."""

    module: str
    spec: str
    environment: dict[str, str]
    report_fd: int
    stderr_fd: int

    def run(self) -> None:
        """Becomes `python -m MODULE SPEC`, in a child."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(self.stderr_fd, 2)
        os.close(self.stderr_fd)
        os.environ.clear()
        os.environ.update(self.environment)
        tempfile.tempdir = None  # it depends on the environment
        values = json.loads(self.spec) | {"report_fd": self.report_fd}
        spec = json.dumps(values, separators=(",", ":"))
        show_command((sys.executable, "-m", self.module, spec))
        sys.argv = [self.module, spec]
        module = import_module(self.module)
        if hasattr(module, "__path__"):  # a package
            module = import_module(f"{self.module}.__main__")
        module.main()


def serve(requests: socket.socket) -> Job | None:
    """Forks for each request; returns in the child with its job, or None once there are no more."""
    while True:
        data, descriptors, _, _ = socket.recv_fds(requests, MAX_REQUEST_BYTES, 2)
        if not data:
            return None
        try:
            pid = fork_beside()
        except OSError as error:
            pid = -(error.errno or 1)
        if pid == 0:
            requests.close()
            return Job(**json.loads(data), report_fd=descriptors[0], stderr_fd=descriptors[1])
        for descriptor in descriptors:
            os.close(descriptor)
        requests.send(ANSWER.pack(pid))


def main() -> None:
    """Entry point; the arguments are the parent's process id and `ROOM`."""
    die_with_parent(int(sys.argv[1]))
    landlock.take_no_privileges()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the front ends it
    requests = socket.socket(fileno=os.dup(0))
    with open(os.devnull) as nothing:  # noqa: PTH123 (a device)
        os.dup2(nothing.fileno(), 0)
    # It would start a thread, and would call a host of its own.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    for name in PRELOADED:
        import_module(name)
    if threads() > 1:
        sys.exit("a library has started a thread: processes of models are not forked")
    # The collector would write into all pages, which are shared until they are written.
    gc.collect()
    gc.freeze()
    if job := serve(requests):
        job.run()


if __name__ == "__main__":
    main()
