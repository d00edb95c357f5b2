"""How a function becomes a command: shared options, and failures as messages and exit codes."""

from __future__ import annotations

import functools
import inspect
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import typer

from cli import failures, output
from cli.failures import CliError, Failure
from cli.session import Session, open_session


def command(
    app: typer.Typer, name: str, *, connects: bool = True, **settings: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a command. It gets the options that all commands share as its first argument.

    Args:
        app: where.
        name: what a person types.
        connects: whether it calls a stack; without, it has the option --json alone of them.
        settings: as of `typer.Typer.command`.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(function, eval_str=True)
        own = list(signature.parameters.values())[1:]
        shared = [
            each
            for each in inspect.signature(open_session, eval_str=True).parameters.values()
            if connects or each.name == "json"
        ]

        @functools.wraps(function)
        def run(**arguments: Any) -> None:
            connection = {each.name: arguments.pop(each.name) for each in shared}
            _guarded(lambda session: function(session, **arguments), connection)

        parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*own, *shared)]
        run.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=parameters, return_annotation=None
        )
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        del run.__wrapped__  # its annotations are others
        app.command(name, **settings)(run)
        return function

    return register


def _guarded(action: Callable[[Session], Any], connection: dict[str, Any]) -> None:
    """Runs a command; what goes wrong is said in a sentence, and is an exit code.

    Raises:
        typer.Exit: with the exit code, unless the command has done what it should.
    """
    import grpc

    address = ""
    try:
        session = open_session(**connection)
        address = session.address
        action(session)
        sys.stdout.flush()
        return
    except CliError as error:
        failure = Failure(str(error), error.exit_code)
    except grpc.RpcError as error:
        failure = failures.of_call(error, address)
    except KeyboardInterrupt:
        if output.is_terminal(sys.stderr):
            sys.stderr.write("\n")
        raise typer.Exit(failures.STOPPED) from None
    except BrokenPipeError:
        # Whoever reads has had enough. Nothing may be written at the interpreter's end either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(failures.CLOSED_PIPE) from None
    except OSError as error:
        if error.filename is None:
            raise
        failure = Failure(f"{error.filename}: {error.strerror}", failures.USAGE)
    if connection["json"]:
        sys.stderr.write(f"{json.dumps(failure.as_json(), ensure_ascii=False)}\n")
    else:
        output.note(f"ml: {failure}")
    raise typer.Exit(failure.exit_code) from None
