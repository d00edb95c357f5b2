"""No process outlives the runner, however the runner or its starter ends.

Two processes share the work. The guard, whose pid the starter knows, does nothing but watch; the
runner is its child and starts everything else. Each is a child subreaper, so orphans of any depth
come to the nearest of the two. If the guard dies, the kernel signals the runner, which kills what
it started; if the runner dies, the guard does.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import traceback
from collections.abc import Callable

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

# What the runner and the guard wait for. SIGUSR1 means: whoever we serve is dead, kill everything.
STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
ABANDONED = signal.SIGUSR1
ORDERS = STOP_SIGNALS | {ABANDONED}
WAITED_SIGNALS = ORDERS | {signal.SIGCHLD}

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def signal_on_parent_death(signum: int) -> None:
    """Has the kernel send `signum` to this process when the thread that forked it ends."""
    _prctl(PR_SET_PDEATHSIG, signum)


def prepare_child(parent: int) -> None:
    """Runs in a child between fork and exec: default signals, and no life without the parent."""
    signal_on_parent_death(signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if os.getppid() != parent:  # it died before the line above took effect
        os._exit(1)


def kill_descendants(spare: frozenset[int] = frozenset()) -> None:
    """Kills every process below this one, orphans included, but `spare` and what is below them.

    Those that this process must reap are left to the caller.
    """
    import psutil  # not needed until something ended

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
    """Collects the children that have ended: pid to exit code, negative for a signal."""
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
    """Kills everything below this process, and returns when there is nothing left."""
    while True:
        kill_descendants()
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def run_guarded(run: Callable[[], int], parent: int | None) -> int:
    """Calls `run` in a child process, watches it to its end and returns its exit code.

    Args:
        run: the runner. Signals of `WAITED_SIGNALS` are blocked in it: it waits for them.
        parent: the process whose end also ends everything, or None.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a starter that ignores it would hide exit codes
    signal.pthread_sigmask(signal.SIG_BLOCK, WAITED_SIGNALS)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    if parent is not None:
        signal_on_parent_death(ABANDONED)
    guard = os.getpid()
    runner = os.fork()
    if runner == 0:
        _become_runner(guard, run)
    return _watch(runner, parent)


def _become_runner(guard: int, run: Callable[[], int]) -> None:
    """The child's side of the fork; it never returns."""
    code = 1
    try:
        signal_on_parent_death(ABANDONED)
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
        os.setpgid(0, 0)  # Ctrl-C reaches the guard alone, which passes on one signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})  # and the terminal stays ours
        if os.getppid() == guard:
            code = run()
    except BaseException:  # noqa: BLE001 (nothing may unwind into the guard's side)
        traceback.print_exc()
    finally:
        os._exit(code)


def _watch(runner: int, parent: int | None) -> int:
    while True:
        received = signal.sigtimedwait(WAITED_SIGNALS, 1.0)
        # A parent's thread may end and its process live on: only a new parent tells of a death.
        if parent is not None and os.getppid() != parent:
            os.kill(runner, ABANDONED)
        elif received and received.si_signo in STOP_SIGNALS:
            os.kill(runner, signal.SIGTERM)
        code = reap().get(runner)
        if code is not None:
            kill_all_and_reap()
            return code if code >= 0 else 128 - code
