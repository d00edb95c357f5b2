"""The runner's loop: start, watch, restart, and stop in order."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from stack import (
    control,
    guard,
)
from stack.child import (
    DRAINED,
    NOT_SERVING,
    SERVING,
    STOPPED,
    Child,
)
from stack.display import (
    Display,
    open_display,
)
from stack.envoy import Admin
from stack.layout import (
    ChildSpec,
    Layout,
)
from stack.ports import accepts

_TICK_SECONDS = 0.5
_PROBE_SECONDS = 0.5
_ROTATION_SECONDS = 10.0
_LISTEN_SECONDS = 20.0  # for Envoy to listen; it takes a tenth of one
DRAIN_SECONDS = 3.0  # for calls in flight when the stack is stopped
STOP_SECONDS = 10.0  # from the first signal to the last process, drain included


class StartError(Exception):
    """The stack cannot start; the message is for the user."""


class Runner:
    """Owns all processes of one stack. Everything happens on the main thread.

    Args:
        layout: where the stack's files and ports are.
        specs: its processes, Envoy first.
        hang_seconds: a process that served and then does not for this long is killed.
    """

    def __init__(self, layout: Layout, specs: list[ChildSpec], hang_seconds: float) -> None:
        self._layout = layout
        self._most_silent = hang_seconds / _PROBE_SECONDS
        self._children = [Child(spec, layout.logs) for spec in specs]
        self._envoy = self._children[0]
        self._admin = Admin(layout.ports.envoy_admin)
        self._caller_files = layout.caller_files()
        self._guard_pid = os.getppid()
        self._display: Display
        self._told_ready = False
        self._reported: list[tuple[str, int | None]] = []
        # What Envoy has been told of failed services, and the process that was told.
        self._told_failed: tuple[int | None, dict[str, bool]] = (None, {})

    def run(self) -> int:
        """Runs the stack until it is asked to stop.

        Returns:
            0 after a requested stop, 1 when the guard or its parent died.

        Raises:
            StartError: Envoy does not start.
            CallersError: a file of API keys or certificate names is not valid.
        """
        for child in self._children:
            child.rotate_log(at=0)
        self._caller_files.write()
        started = time.monotonic()
        self._start_envoy()
        took = time.monotonic() - started
        self._display = open_display(f"ML services on http://localhost:{self._envoy.spec.port}")
        self._display.say(f"Envoy listens after {took:.2f} s; logs are in {self._layout.logs}")
        if warning := self._layout.warning():
            self._display.say(f"WARNING: {warning}")
            self._envoy.note(warning)
        control.write(self._layout, self._children, self._guard_pid)
        try:
            return self._loop()
        finally:
            self._layout.state_file.unlink(missing_ok=True)
            self._display.close()

    def _start_envoy(self) -> None:
        """Starts Envoy before the rest: some clients give up if nothing listens on its port."""
        self._envoy.start()
        give_up = time.monotonic() + _LISTEN_SECONDS
        port, host = self._envoy.spec.port, self._envoy.spec.host
        while not accepts(port, host=host) and not signal.sigpending() & guard.END_SIGNALS:
            if guard.reap() or time.monotonic() > give_up:
                guard.kill_all_and_reap()
                reason = self._envoy.last_log_line() or "its log is empty"
                raise StartError(f"Envoy does not start: {reason}")
            time.sleep(0.005)
        self._envoy.state = SERVING

    def _loop(self) -> int:
        next_probe = next_rotation = 0.0
        while True:
            self._tell_ended()
            self._start_due()
            if time.monotonic() >= next_probe:
                self._probe()
                self._tell_failed()
                self._refresh_callers()
                next_probe = time.monotonic() + _PROBE_SECONDS
            if time.monotonic() >= next_rotation:
                for child in self._children:
                    child.rotate_log()
                next_rotation = time.monotonic() + _ROTATION_SECONDS
            self._report()
            received = guard.wait_for_signal(guard.WAITED_SIGNALS, _TICK_SECONDS)
            if received == guard.PARENT_DIED or os.getppid() != self._guard_pid:
                guard.kill_all_and_reap()
                return 1
            if received in guard.STOP_SIGNALS:
                self._stop()
                return 0

    def _tell_ended(self) -> None:
        for pid, code in guard.reap().items():
            child = self._child_of(pid)
            if child is not None:
                self._display.say(child.ended(code))
                # Descendants that it has left behind would hold memory, files and sockets.
                guard.kill_descendants(frozenset(c.pid for c in self._children if c.pid))

    def _child_of(self, pid: int) -> Child | None:
        return next((child for child in self._children if child.pid == pid), None)

    def _start_due(self) -> None:
        for child in self._children:
            if child.pid is None and time.monotonic() >= child.retry_at:
                child.start()

    def _probe(self) -> None:
        """Asks Envoy which services are healthy; the provider serves once it accepts."""
        healthy: set[str] | None = None
        with contextlib.suppress(OSError):
            healthy = self._admin.healthy_clusters()
        for child in self._children:
            if child.pid is None:
                continue
            if child is self._envoy:
                serving = healthy is not None
            elif child.spec.cluster:
                serving = child.spec.cluster in (healthy or ())
            else:
                serving = child.state == SERVING or accepts(child.spec.port)
            if serving:
                child.state, child.silent_probes = SERVING, 0
            elif child.state in (SERVING, NOT_SERVING, DRAINED):
                if healthy is not None and child.is_drained():
                    child.state, child.silent_probes = DRAINED, 0
                    continue
                child.state = NOT_SERVING
                # While Envoy does not answer, nothing is known of the others.
                child.silent_probes += child is self._envoy or healthy is not None
                self._end_if_hung(child)

    def _tell_failed(self) -> None:
        """Tells Envoy which services have failed, so that calls do not wait for their start."""
        failed = {
            child.spec.cluster: child.failed for child in self._children if child.spec.cluster
        }
        pid, told = self._told_failed
        if pid != self._envoy.pid:
            told = dict.fromkeys(failed, False)  # a new Envoy knows of none
        with contextlib.suppress(OSError):  # Envoy does not answer: told at the next probe
            for cluster in failed:
                if failed[cluster] != told[cluster]:
                    self._admin.tell_failed(cluster, failed[cluster])
                    told = told | {cluster: failed[cluster]}
        self._told_failed = (self._envoy.pid, told)

    def _end_if_hung(self, child: Child) -> None:
        """Kills a process that has not served for too long; it is restarted as if it had died."""
        if child.silent_probes >= self._most_silent:
            child.silent_probes = 0
            seconds = self._most_silent * _PROBE_SECONDS
            self._display.say(f"{child.spec.name} has not served for {seconds:g} s and is killed")
            child.kill_hung()

    def _refresh_callers(self) -> None:
        for sentence in self._caller_files.refresh():
            self._display.say(sentence)
            self._envoy.note(sentence)

    def _report(self) -> None:
        """Shows states that have changed, and writes them to the state file."""
        now = [(child.state, child.pid) for child in self._children]
        if now != self._reported:
            self._reported = now
            control.write(self._layout, self._children, self._guard_pid)
        self._display.show(self._children)
        if not self._told_ready and all(child.state == SERVING for child in self._children):
            self._told_ready = True
            self._display.say("all processes are serving")

    def _stop(self) -> None:
        """Drains Envoy, then terminates all processes, then kills those that remain."""
        deadline = time.monotonic() + STOP_SECONDS
        self._display.say("stopping")
        self._drain()
        for child in self._children:
            child.signal(signal.SIGTERM)
        while any(child.pid for child in self._children):
            told_again = guard.wait_for_signal(guard.WAITED_SIGNALS, 0.1) in guard.END_SIGNALS
            if told_again or time.monotonic() > deadline:
                alive = [child.spec.name for child in self._children if child.pid]
                self._display.say(f"killing what has not stopped: {', '.join(alive)}")
                break
            for pid in guard.reap():
                ended = self._child_of(pid)
                if ended is not None:
                    ended.state, ended.pid = STOPPED, None
            self._display.show(self._children)
        guard.kill_all_and_reap()
        for child in self._children:
            child.state, child.pid = STOPPED, None
        self._display.show(self._children)

    def _drain(self) -> None:
        """Refuses new calls, and gives those in flight a few seconds."""
        give_up = time.monotonic() + DRAIN_SECONDS
        with contextlib.suppress(OSError):  # Envoy is down: nothing to drain
            self._admin.drain()
            while self._admin.active_requests() and time.monotonic() < give_up:
                if guard.wait_for_signal(guard.WAITED_SIGNALS, 0.05) in guard.END_SIGNALS:
                    return
