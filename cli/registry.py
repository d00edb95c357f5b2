"""How a function becomes a command: shared options, and failures as messages and exit codes."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

import click
import typer
from typer.core import TyperCommand

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
        app.command(name, cls=_Command, **settings)(run)
        return function

    return register


class _Command(TyperCommand):
    """Says in JSON, too, what is wrong with a command line."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        as_json = "--json" in args
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            if not as_json:
                raise
            _say(Failure(error.format_message(), failures.USAGE), as_json=True)
            raise typer.Exit(failures.USAGE) from None


def _say(failure: Failure, *, as_json: bool) -> None:
    if as_json:
        sys.stderr.write(f"{output.dumped(failure.as_json())}\n")
    else:
        output.note(f"ml: {failure}")


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
    except UnicodeEncodeError as error:
        if error.encoding != "utf-8":  # of stdout
            raise
        failure = Failure("an argument is not text", failures.USAGE)
    _say(failure, as_json=connection["json"])
    raise typer.Exit(failure.exit_code) from None
