"""No process outlives the runner, however the runner or its starter ends.

Two processes share the work. The guard, whose pid the starter knows, only watches; the runner is
its child and starts everything else. Each is a child subreaper, so orphans of any depth become
children of the nearest of the two. If the guard dies, the kernel signals the runner, which kills
everything it started; if the runner dies, the guard does that.

Subreapers and signals on a parent's death exist on Linux alone. On macOS both processes poll for
the death of their parent instead, and descendants of a runner that was killed are not found.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Collection

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

# What the runner and the guard wait for. SIGUSR1 means that the parent is dead: kill everything.
STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
PARENT_DIED = signal.SIGUSR1
END_SIGNALS = STOP_SIGNALS | {PARENT_DIED}
WAITED_SIGNALS = END_SIGNALS | {signal.SIGCHLD}

# How often pending signals are looked for where the system has no sigtimedwait.
_POLL_SECONDS = 0.02

_SIGSET_BYTES = 128  # of sigset_t

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    if sys.platform != "linux":
        return
    if _libc.prctl(option, value, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def signal_on_parent_death(signum: int) -> None:
    """Has the kernel send `signum` to this process when the thread that forked it ends (Linux)."""
    _prctl(PR_SET_PDEATHSIG, signum)


def prepare_child(parent: int) -> None:
    """Runs in a child between fork and exec: unblocks signals, and ties it to its parent's life."""
    signal_on_parent_death(signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if os.getppid() != parent:  # it died before the line above took effect
        os._exit(1)


def wait_for_signal(signals: Collection[signal.Signals], seconds: float) -> int | None:
    """Takes one pending signal out of `signals`, which must be blocked.

    Returns:
        Its number; None when none arrived within `seconds`.
    """
    if sys.platform != "darwin":
        return _sigtimedwait(signals, seconds)
    give_up = time.monotonic() + seconds
    while not (pending := signal.sigpending() & set(signals)):
        if time.monotonic() >= give_up:
            return None
        time.sleep(_POLL_SECONDS)
    return signal.sigwait(pending)


def _sigtimedwait(signals: Collection[signal.Signals], seconds: float) -> int | None:
    """As Python's own, which makes a signal up when SIGCONT interrupts it after its time."""
    chosen = ctypes.create_string_buffer(_SIGSET_BYTES)
    for signum in signals:
        _libc.sigaddset(chosen, int(signum))
    whole, part = divmod(seconds, 1)
    timeout = (ctypes.c_long * 2)(int(whole), int(part * 1e9))  # struct timespec
    received: int = _libc.sigtimedwait(chosen, None, timeout)
    return received if received > 0 else None


def kill_descendants(spare: frozenset[int] = frozenset()) -> None:
    """Kills all descendants, orphans included, except `spare` and their descendants.

    The caller reaps those that are children of this process.
    """
    import psutil  # needed only once something has ended

    for child in psutil.Process().children():
        if child.pid in spare:
            continue
        try:
            family = [*child.children(recursive=True), child]
        except psutil.NoSuchProcess:
            continue
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def reap() -> dict[int, int]:
    """Exit codes of the children that have ended, by pid; negative for a signal."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended[pid] = os.waitstatus_to_exitcode(status)


def kill_all_and_reap() -> None:
    """Kills all descendants, and returns when none is left."""
    while True:
        kill_descendants()
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def run_guarded(run: Callable[[], int], parent: int | None) -> int:
    """Calls `run` in a child process, watches it until it ends and returns its exit code.

    Args:
        run: the runner. Signals of `WAITED_SIGNALS` are blocked in it: it waits for them.
        parent: the process whose end also ends everything, or None.
    """
    # Exit codes would be lost if the starter ignored this signal.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, WAITED_SIGNALS)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    if parent is not None:
        signal_on_parent_death(PARENT_DIED)
    guard = os.getpid()
    runner = os.fork()
    if runner == 0:
        _become_runner(guard, run)
    return _watch(runner, parent)


def _become_runner(guard: int, run: Callable[[], int]) -> None:
    """The child's side of the fork; it never returns."""
    code = 1
    try:
        signal_on_parent_death(PARENT_DIED)
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
        os.setpgid(0, 0)  # Ctrl-C reaches the guard alone, which passes on one signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})  # and the terminal stays ours
        if os.getppid() == guard:
            code = run()
    except BaseException:  # noqa: BLE001 (nothing may unwind into the guard's code)
        traceback.print_exc()
    finally:
        os._exit(code)


def _watch(runner: int, parent: int | None) -> int:
    while True:
        received = wait_for_signal(WAITED_SIGNALS, 1.0)
        # The parent's thread may end while its process lives: only a new parent means a death.
        if parent is not None and os.getppid() != parent:
            os.kill(runner, PARENT_DIED)
        elif received in STOP_SIGNALS:
            os.kill(runner, signal.SIGTERM)
        code = reap().get(runner)
        if code is not None:
            kill_all_and_reap()
            return code if code >= 0 else 128 - code
