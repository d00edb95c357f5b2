"""`ml up | down`: the whole stack as processes on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import output
from cli.failures import FAULT, STATUS_BASE, CliError
from cli.registry import command
from cli.session import PORT, Session

_SERVING_SECONDS = 300.0
_DEADLINE_EXCEEDED = 4
_POLL_SECONDS = 0.1


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    passed_on = {"allow_extra_args": True, "ignore_unknown_options": True}
    command(app, "up", connects=False, context_settings=passed_on)(up)
    command(app, "down", connects=False)(down)


def start_command() -> list[str]:
    """What starts a stack."""
    return [sys.executable, "-m", "stack", "up"]


RunDir = Annotated[
    Path | None, typer.Option(help="Logs, caches and state. [default: run/ of the repository]")
]


def up(
    session: Session,
    context: typer.Context,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of callers; 0 is a free one.")
    ] = PORT,
    run_dir: RunDir = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return when all services are serving.")
    ] = False,
) -> None:
    """Start Envoy and the services, with a file provider in the application's place.

    Until Ctrl-C or `ml down`. Other options are those of `python -m stack up`, such as
    --callers DIR and --tls DIR: `python -m stack --help` has them.
    """
    from stack import control
    from stack.layout import ROOT

    folder = (run_dir or ROOT / "run").absolute()
    start = [*start_command(), "--port", str(port), "--run-dir", str(folder), *context.args]
    if not (detach or session.json):
        sys.stdout.flush()
        os.execv(sys.executable, start)  # noqa: S606  # there is nothing that a shell would do
    state_file = folder / "stack.json"
    if running := control.find(state_file):
        raise CliError(f"a stack is already running in {folder} (process {running['pid']})", FAULT)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "up.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            start + ([] if detach else ["--exit-with-parent", str(os.getpid())]),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=detach,
        )
    state = _wait_serving(process, state_file, log, session.json)
    if session.json:
        output.json_line({name: state[name] for name in ("pid", "addresses", "logs")})
    else:
        output.line(f"serving at {state['addresses']['envoy']}; `ml down` stops it")
    if not detach:
        try:
            if process.wait():
                raise CliError(f"the stack has failed: see {log}", FAULT)
        finally:  # Ctrl-C has reached it too
            process.terminate()
            process.wait()


def _wait_serving(
    process: subprocess.Popen[bytes], state_file: Path, log: Path, json: bool
) -> dict[str, Any]:
    """The state of a stack whose services all serve.

    Raises:
        CliError: it has ended, or it takes longer than _SERVING_SECONDS.
    """
    from stack import control

    waiting: AbstractContextManager[Any] = nullcontext()
    if output.progress_is_shown(json):
        waiting = output.console().status("waiting for the services")
    give_up = time.monotonic() + _SERVING_SECONDS
    with waiting:
        while True:
            state = control.find(state_file)
            if state and all(each == "serving" for each in state["states"].values()):
                return state
            if process.poll() is not None:
                said = log.read_text(errors="replace").strip() or f"see {log}"
                raise CliError(f"the stack did not start: {said}", FAULT)
            if time.monotonic() > give_up:
                raise CliError(
                    f"not all services serve after {_SERVING_SECONDS:g} s: logs are in "
                    f"{state_file.parent / 'logs'}, and `ml down` stops them",
                    STATUS_BASE + _DEADLINE_EXCEEDED,
                )
            time.sleep(_POLL_SECONDS)


def down(session: Session, run_dir: RunDir = None) -> None:
    """Stop what `ml up` or `make up` has started."""
    from stack import control
    from stack.layout import ROOT

    state_file = (run_dir or ROOT / "run").absolute() / "stack.json"
    if not session.json:
        if control.down(state_file):
            raise typer.Exit(FAULT)
        return
    from contextlib import redirect_stdout
    from io import StringIO

    was = control.find(state_file)
    with redirect_stdout(StringIO()) as said:
        killed = control.down(state_file)
    output.json_line({"stopped": was is not None, "message": said.getvalue().strip()})
    if killed:
        raise typer.Exit(FAULT)
