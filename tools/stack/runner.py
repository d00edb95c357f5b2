"""The runner's loop: start, watch, restart, and stop in order."""

from __future__ import annotations

import os
import signal
import time

from tools.stack import control, guard
from tools.stack.child import NOT_SERVING, SERVING, STOPPED, Child
from tools.stack.display import Display, open_display
from tools.stack.envoy import Admin
from tools.stack.layout import ChildSpec, Layout
from tools.stack.ports import accepts

_TICK_SECONDS = 0.25
_LISTEN_SECONDS = 20.0  # for Envoy to listen; it takes a tenth of one
DRAIN_SECONDS = 3.0  # for calls that run when the stack is stopped
STOP_SECONDS = 10.0  # from the first signal to the last process, drain included


class StartError(Exception):
    """The stack cannot start; the message is a sentence for the user."""


class Runner:
    """Owns all processes of one stack. Everything happens on the main thread."""

    def __init__(self, layout: Layout, specs: list[ChildSpec]) -> None:
        self._layout = layout
        self._children = [Child(spec, layout.logs) for spec in specs]
        self._envoy = self._children[0]
        self._admin = Admin(layout.ports.envoy_admin)
        self._guard_pid = os.getppid()
        self._display: Display
        self._told_ready = False

    def run(self) -> int:
        """Runs the stack until it is told to stop.

        Returns:
            0 after a stop that was asked for, 1 when the guard or its parent died.

        Raises:
            StartError: Envoy does not start.
        """
        for child in self._children:
            child.rotate_log(at=0)
        started = time.monotonic()
        self._start_envoy()
        took = time.monotonic() - started
        self._write_state()
        for child in self._children[1:]:
            child.start()
        self._write_state()
        layout = self._layout
        self._display = open_display(f"ML services on http://localhost:{layout.ports.envoy}")
        self._display.say(f"Envoy listens after {took:.2f} s; logs are in {layout.logs}")
        try:
            return self._loop()
        finally:
            layout.state_file.unlink(missing_ok=True)
            self._display.close()

    def _start_envoy(self) -> None:
        """Envoy comes first: clients that find nobody on its port are lost for good."""
        self._envoy.start()
        give_up = time.monotonic() + _LISTEN_SECONDS
        while not accepts(self._envoy.spec.port):
            if guard.reap() or time.monotonic() > give_up:
                guard.kill_all_and_reap()
                reason = self._envoy.last_log_line() or "it said nothing"
                raise StartError(f"Envoy does not start: {reason}")
            time.sleep(0.005)

    def _loop(self) -> int:
        ticks = 0
        while True:
            received = signal.sigtimedwait(guard.WAITED_SIGNALS, _TICK_SECONDS)
            if received and received.si_signo == guard.ABANDONED:
                guard.kill_all_and_reap()
                return 1
            if received and received.si_signo in guard.STOP_SIGNALS:
                self._stop()
                return 0
            self._restart_ended()
            if received is None:
                self._probe()
                ticks += 1
                if ticks % 40 == 0:
                    for child in self._children:
                        child.rotate_log()
            self._display.show(self._children)

    def _restart_ended(self) -> None:
        changed = False
        for pid, code in guard.reap().items():
            for child in self._children:
                if child.pid == pid:
                    self._display.say(child.ended(code))
                    self._kill_orphans()
                    changed = True
        for child in self._children:
            if child.pid is None and time.monotonic() >= child.retry_at:
                child.start()
                changed = True
        if changed:
            self._write_state()

    def _kill_orphans(self) -> None:
        """What a dead child has left behind would hold memory, files and sockets."""
        guard.kill_descendants(frozenset(child.pid for child in self._children if child.pid))

    def _probe(self) -> None:
        try:
            healthy = self._admin.healthy_clusters()
        except OSError:
            healthy = set()
        for child in self._children:
            if child.pid is None:
                continue
            cluster = child.spec.cluster
            serving = cluster in healthy if cluster else accepts(child.spec.port)
            if serving:
                child.state = SERVING
            elif child.state == SERVING:
                child.state = NOT_SERVING
        if not self._told_ready and all(child.state == SERVING for child in self._children):
            self._told_ready = True
            self._display.say("all processes are serving")

    def _write_state(self) -> None:
        control.write(self._layout, self._children, self._guard_pid)

    def _stop(self) -> None:
        """Envoy drains, then everything is told to stop, then what is left is killed."""
        deadline = time.monotonic() + STOP_SECONDS
        self._display.say("stopping")
        self._drain()
        for child in self._children:
            child.signal(signal.SIGTERM)
        while any(child.pid for child in self._children):
            received = signal.sigtimedwait(guard.WAITED_SIGNALS, 0.1)
            impatient = received and received.si_signo != signal.SIGCHLD
            if impatient or time.monotonic() > deadline:
                alive = [child.spec.name for child in self._children if child.pid]
                self._display.say(f"killing what has not stopped: {', '.join(alive)}")
                break
            self._note_stopped()
        guard.kill_all_and_reap()
        for child in self._children:
            child.state, child.pid = STOPPED, None
        self._display.show(self._children)

    def _note_stopped(self) -> None:
        for pid in guard.reap():
            for child in self._children:
                if child.pid == pid:
                    child.state, child.pid = STOPPED, None
        self._display.show(self._children)

    def _drain(self) -> None:
        """Gives running calls a few seconds; no new ones are taken."""
        give_up = time.monotonic() + DRAIN_SECONDS
        try:
            self._admin.drain()
            while self._admin.active_requests() and time.monotonic() < give_up:
                received = signal.sigtimedwait(guard.WAITED_SIGNALS, 0.05)
                if received and received.si_signo != signal.SIGCHLD:
                    return
        except OSError:
            pass  # Envoy is down: nothing to drain
