"""`ml models | load | unload | watch`: what is in memory, and what comes and goes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import output
from cli.inputs import assignments
from cli.names import complete_model, complete_type
from cli.registry import command
from cli.session import Session

if TYPE_CHECKING:
    import grpc

    from ml.model_management_pb2 import ModelStatus, WatchModelsResponse

_MIB = 1 << 20
_WATCH_AGAIN_SECONDS = 1.0
HEADS = ("MODEL", "TYPE", "STATE", "ENGINE", "RAM", "VRAM", "IN FLIGHT", "LAST USED")

Model = Annotated[str, typer.Argument(autocompletion=complete_model, help="Id, org/name or name.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    command(app, "models")(models)
    command(app, "load")(load)
    command(app, "unload")(unload)
    command(app, "watch")(watch)


def models(session: Session) -> None:
    """List the models in memory, on their way, failed or evicted."""
    from ml import model_management_pb2 as pb

    with session.channel() as channel:
        stub = _stub(channel)
        request = pb.ListModelsRequest()
        answer = stub.ListModels(request, **session.call)
    if session.json:
        for status in answer.models:
            output.json_line(output.plain(status))
    elif answer.models:
        output.table(HEADS, [row(status) for status in answer.models])
    else:
        output.note("no models are loaded; `ml load MODEL` loads one")


def load(
    session: Session,
    model: Model,
    pipeline_type: Annotated[
        str,
        typer.Option(
            "--type",
            "-t",
            autocompletion=complete_type,
            help="What it is for, such as text-generation. [default: what its files say]",
        ),
    ] = "",
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option", "-O", metavar="NAME=VALUE", help="A load option; may be repeated."
        ),
    ] = None,
    wait: Annotated[
        bool, typer.Option(help="Return when it is ready, or has failed; else at once.")
    ] = True,
) -> None:
    """Load a model, and show how far it is until it is ready.

    Ctrl-C ends the command; the load goes on.
    """
    from ml import model_management_pb2 as pb

    request = pb.LoadModelRequest(
        model_id=model, pipeline_type=pipeline_type, options=assignments(option), wait=wait
    )
    with session.channel() as channel:
        stub = _stub(channel)
        call = stub.LoadModel.future(request, **session.call)
        if wait and output.progress_is_shown(session.json):
            _follow(stub, session, model, call)
        answer = call.result()
    if session.json:
        output.json_line(output.plain(answer))
    elif wait:
        size = _mib(answer.ram_allocated_mb * _MIB) or "0 MiB"
        output.line(f"{model} is ready: {answer.pipeline_type}, {size}")
    else:
        output.line(f"{model}: {state_of(answer.status)}; `ml watch {model}` follows it")


def _follow(stub: Any, session: Session, model: str, call: Any) -> None:
    """Shows how a load goes on, until its call has ended."""
    import grpc

    from ml import model_management_pb2 as pb

    request = pb.WatchModelsRequest()
    watched = stub.WatchModels(request, metadata=session.metadata)
    call.add_done_callback(lambda _: watched.cancel())
    with load_progress(model) as show:
        try:
            for change in watched:
                for status in change.models:
                    if status.model_id == model:
                        show(status)
        except grpc.RpcError:
            pass  # cancelled; or the call, which follows, says what is wrong


@contextmanager
def load_progress(model: str) -> Iterator[Callable[[ModelStatus], None]]:
    """A line that says how far a load has come, with a bar of its files, or of its weights."""
    from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn

    said = TextColumn("{task.description}", markup=False)  # brackets in an id are its own
    columns = (SpinnerColumn(), said, BarColumn(), DownloadColumn())
    with Progress(*columns, console=output.console(), transient=True) as progress:
        task = progress.add_task(f"{output.printable(model)}: pending", total=None)

        def show(status: ModelStatus) -> None:
            done: float = status.bytes_fetched
            if status.HasField("load_share"):
                done = status.load_share * status.bytes_total
            progress.update(
                task,
                description=f"{output.printable(model)}: {state_of(status)}",
                completed=done,
                total=status.bytes_total or None,
            )

        yield show


def unload(
    session: Session,
    model: Annotated[
        list[str], typer.Argument(autocompletion=complete_model, help="Ids of models.")
    ],
) -> None:
    """Take models out of memory, once their running calls have ended."""
    from ml import model_management_pb2 as pb

    with session.channel() as channel:
        stub = _stub(channel)
        for each in model:
            answer = stub.UnloadModel(
                pb.UnloadModelRequest(model_id=each),
                **session.call,
            )
            if session.json:
                output.json_line(output.plain(answer))
            else:
                output.line(f"{each}: {answer.message}")


def watch(
    session: Session,
    model: Annotated[
        list[str] | None,
        typer.Argument(autocompletion=complete_model, help="Ids of models. [default: all]"),
    ] = None,
) -> None:
    """Show models as they change, until Ctrl-C.

    A table that changes in a terminal; elsewhere a line for each change.
    """
    wanted = set(model or ())
    with session.channel() as channel:
        changes = _changes(_stub(channel), session)
        if session.json:
            for change in changes:
                _print_change(change, wanted)
        elif output.progress_is_shown(session.json):
            _watch_table(changes, wanted)
        else:
            _watch_lines(changes, wanted)


def _changes(stub: Any, session: Session) -> Iterator[WatchModelsResponse]:
    """What changes; a watch that ends, as at a restart of the service, goes on where it was.

    Raises:
        grpc.RpcError: the first watch has failed, or a later one for another reason than that the
            service is away.
    """
    import grpc

    from ml import model_management_pb2 as pb

    seen = 0
    while True:
        request = pb.WatchModelsRequest(after=seen)
        try:
            watched = stub.WatchModels(request, **session.call)
            for change in watched:
                seen = change.sequence
                yield change
        except grpc.RpcError as error:
            if not seen or error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
        time.sleep(_WATCH_AGAIN_SECONDS)


def _print_change(change: WatchModelsResponse, wanted: set[str]) -> None:
    values = output.plain(change)
    if wanted:
        values["models"] = [each for each in values["models"] if each["model_id"] in wanted]
        values["removed"] = [each for each in values["removed"] if each in wanted]
        if not (values["models"] or values["removed"] or values["complete"]):
            return
    output.json_line(values)


def _watch_lines(changes: Iterator[WatchModelsResponse], wanted: set[str]) -> None:
    shown: dict[str, str] = {}
    for change in changes:
        gone = set(change.removed)
        if change.complete:
            gone |= shown.keys() - {status.model_id for status in change.models}
        for model in sorted(gone & shown.keys()):
            del shown[model]
            output.line(f"{model}  gone")
        for status in change.models:
            said = f"{state_of(status)}{_how_far(status)}"
            if (not wanted or status.model_id in wanted) and shown.get(status.model_id) != said:
                shown[status.model_id] = said
                output.line(f"{status.model_id}  {said}")


def _watch_table(changes: Iterator[WatchModelsResponse], wanted: set[str]) -> None:
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    known: dict[str, ModelStatus] = {}
    with Live(console=output.console(), auto_refresh=False) as live:
        for change in changes:
            if change.complete:
                known.clear()
            for removed in change.removed:
                known.pop(removed, None)
            known |= {status.model_id: status for status in change.models}
            table = Table(*HEADS, box=None, pad_edge=False)
            for model, status in sorted(known.items()):
                if not wanted or model in wanted:
                    cells = row(status)
                    cells[2] += _how_far(status)
                    # A string would be read as markup.
                    table.add_row(*(Text(output.printable(cell)) for cell in cells))
            live.update(table, refresh=True)


def _stub(channel: grpc.Channel) -> Any:
    from ml import model_management_pb2_grpc

    return model_management_pb2_grpc.ModelManagementServiceStub(channel)


def state_of(status: ModelStatus) -> str:
    """A model's state in a word."""
    from ml import model_management_pb2 as pb

    name: str = pb.ModelState.Name(status.state)
    return name.removeprefix("MODEL_STATE_").lower()


def _how_far(status: ModelStatus) -> str:
    from ml import model_management_pb2 as pb

    if status.state == pb.MODEL_STATE_FETCHING and status.bytes_total:
        return f" {status.bytes_fetched / status.bytes_total:.0%}"
    if status.state == pb.MODEL_STATE_LOADING and status.HasField("load_share"):
        return f" {status.load_share:.0%}"
    return f": {status.reason}" if status.reason else ""


def row(status: ModelStatus) -> list[str]:
    """A model in the columns of `HEADS`."""
    return [
        status.model_id,
        status.pipeline_type,
        state_of(status),
        status.engine or "-",
        _mib(status.ram_bytes) or "-",
        _mib(status.vram_bytes) or "-",
        str(status.calls_in_flight),
        _ago(status.last_used_at),
    ]


def _mib(size: int) -> str:
    return f"{math.ceil(size / _MIB)} MiB" if size else ""


def _ago(moment: float) -> str:
    if not moment:
        return "never"
    seconds = max(0, time.time() - moment)
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
