"""`ml detect | stream`: what is in pictures and videos, and both with it drawn on them."""

from __future__ import annotations

import re
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Semaphore
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import output
from cli.failures import CliError
from cli.inputs import assignments, picture_format, read_bytes
from cli.names import complete_task
from cli.registry import command
from cli.requests import stream as stream_of
from cli.session import Session
from cli.tasks import TASKS, Task

if TYPE_CHECKING:
    from cli.clips import Frame, Video

# Enough for the service to decode a frame while it detects another one, and for the way between.
_IN_FLIGHT = 8
_NEEDS_TEMPLATE = "templates"
# Metadata whose name ends with -bin would be binary.
_NAME = re.compile(r"(?!(.*[_-])?bin$)[\w-]+", re.ASCII | re.IGNORECASE)

TaskName = Annotated[
    str, typer.Argument(metavar="TASK", autocompletion=complete_task, help=", ".join(TASKS) + ".")
]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "--option", "-O", metavar="NAME=VALUE", help="Of the task, such as max_faces=3; repeatable."
    ),
]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    command(app, "detect")(detect)
    command(app, "stream")(stream)


def detect(
    session: Session,
    task: TaskName,
    picture: Annotated[str, typer.Argument(help='JPEG, PNG or WebP; "-" is stdin.')],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write the picture with what was found drawn on it."),
    ] = None,
    option: Options = None,
) -> None:
    """Find faces, hands, poses, objects or masks in a picture."""
    from ml import mediapipe_pb2 as pb
    from ml import mediapipe_pb2_grpc

    chosen, options = _task(task), assignments(option)
    if task in (_NEEDS_TEMPLATE, "auto-flip"):
        raise CliError(f"{task} is for videos: use `ml stream {task}`")
    data = read_bytes(picture)
    form = picture_format(picture, data)
    with session.channel() as channel:
        stub = mediapipe_pb2_grpc.MediapipeServiceStub(channel)
        if chosen.picture:
            request = pb.ImageRequest(image_data=data, format=form)
            call = session.call | {"metadata": _metadata(session, options)}
            answer = getattr(stub, chosen.picture)(request, **call)
        else:
            frame = pb.VideoFrame(frame_data=data, format=form, metadata=options)
            with stream_of(getattr(stub, chosen.stream), iter((frame,)), session.call) as answers:
                (answer,) = answers
    if out:
        _draw_picture(task, data, picture, answer, out)
    if session.json:
        output.json_line(output.plain(answer))
    else:
        for line in chosen.found(answer) or ["nothing was found"]:
            output.line(line)


def _metadata(session: Session, options: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """Of a call for one picture, which has its options there.

    Raises:
        CliError: metadata cannot have such an option.
    """
    for name, value in options.items():
        if not _NAME.fullmatch(name):
            raise CliError(f"option {name!r} is not known")
        if not (value.isascii() and value.isprintable()):
            raise CliError(f"option {name} is {value!r}: it must be printable ASCII")
    given = ((f"vision-{name.replace('_', '-')}".lower(), value) for name, value in options.items())
    return (*session.metadata, *given)


def _draw_picture(task: str, data: bytes, path: str, answer: Any, out: Path) -> None:
    from cli import clips
    from cli.drawing import DRAWINGS

    image = clips.decode_picture(data, path)
    DRAWINGS[task](image, answer)
    clips.write_picture(out, image)


def stream(
    session: Session,
    task: TaskName,
    video: Annotated[str, typer.Argument(help='A file, a camera (/dev/video0), or "-": stdin.')],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write the video (.mp4) with what was found drawn on it."),
    ] = None,
    option: Options = None,
    latest: Annotated[
        bool, typer.Option(help="Newer frames replace waiting ones, as for a camera.")
    ] = False,
    frames: Annotated[int, typer.Option(min=1, help="Stop after so many. [default: all]")] = 1
    << 60,
    template: Annotated[
        Path | None, typer.Option(help="The picture that task templates looks for.")
    ] = None,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Least likeness of a match of task templates.")
    ] = 0.5,
) -> None:
    """Find things in each frame of a video, and print a line for each.

    Ctrl-C ends the stream; the video that was written until then is whole.
    """
    from cli import clips
    from ml import mediapipe_pb2_grpc

    chosen, options = _task(task), assignments(option)
    if (task == _NEEDS_TEMPLATE) != bool(template):
        raise CliError(f"--template belongs to task {_NEEDS_TEMPLATE}, which needs it")
    if out and out.exists() and Path(video).exists() and out.samefile(video):
        raise CliError(f"{out} is the video itself: write to another file")
    looked_for = (read_bytes(str(template)), threshold) if template else None
    call = session.call
    if latest:
        call["metadata"] = (*session.metadata, ("frame-policy", "latest"))
    with ExitStack() as parts:
        source = parts.enter_context(clips.Video(video))
        drawn = Drawn(task, out, source) if out else None
        if drawn:
            parts.callback(drawn.close)
        channel = parts.enter_context(session.channel())
        rpc = getattr(mediapipe_pb2_grpc.MediapipeServiceStub(channel), chosen.stream)
        flow = Flow(source, frames, options, looked_for, keep=bool(out))
        advance = parts.enter_context(_progress(task, source, frames, session.json, bool(out)))
        for answer in parts.enter_context(stream_of(rpc, flow.requests(), call)):
            frame = flow.answered(answer)
            if drawn and frame:
                drawn.add(frame, answer)
            advance()
            if session.json:
                output.json_line(output.plain(answer))
            elif not out:
                output.line(f"{_place(answer)}  {_said(chosen, answer)}")
    if drawn and not session.json:
        each = f"{flow.inference_ms / max(1, flow.count):.1f} ms each"
        output.line(f"{flow.count} frames, {drawn.found} with a result, {each}, in {out}")


class Flow:
    """Sends the frames of a video, with a limit on those in flight, and knows which are.

    Args:
        video: the frames.
        most: frames to send.
        options: of the stream.
        template: a picture that is looked for, and the least likeness.
        keep: whether frames are kept until they are answered.

    Attributes:
        count: answers so far.
        inference_ms: milliseconds of the service's inference, of all of them.
    """

    def __init__(
        self,
        video: Video,
        most: int,
        options: dict[str, str],
        template: tuple[bytes, float] | None,
        *,
        keep: bool,
    ) -> None:
        self._video, self._most = video, most
        self._options, self._template = options, template
        self._keep = keep
        ahead = options.get("look_ahead", "")
        more = int(ahead) if ahead.isdecimal() and len(ahead) < 10 else 0
        self._places = Semaphore(_IN_FLIGHT + more)
        self._waiting: deque[tuple[int, Frame | None]] = deque()
        self.count, self.inference_ms = 0, 0.0

    def requests(self) -> Iterator[Any]:
        """The requests; gRPC reads them in a thread."""
        for number, frame in enumerate(self._video):
            if number >= self._most:
                return
            self._places.acquire()
            self._waiting.append((number, frame if self._keep else None))
            yield self._request(number, frame)

    def _request(self, number: int, frame: Frame) -> Any:
        from cli.clips import jpeg
        from ml import mediapipe_pb2 as pb

        options = self._options if number == 0 else {}
        if self._template is None:
            return pb.VideoFrame(
                frame_data=jpeg(frame.image),
                format="jpeg",
                timestamp_ms=frame.milliseconds,
                frame_number=number,
                metadata=options,
            )
        picture, threshold = self._template
        return pb.TemplateMatchingRequest(
            frame_data=jpeg(frame.image),
            template_data=b"" if number else picture,
            threshold=threshold,
            timestamp_ms=frame.milliseconds,
            frame_number=number,
            metadata=options,
        )

    def answered(self, answer: Any) -> Frame | None:
        """The frame of an answer, if frames are kept. Frames before it get no answer any more."""
        self.count += 1
        self.inference_ms += answer.timing.inference_ms
        while self._waiting:
            sent, frame = self._waiting.popleft()
            self._places.release()
            if sent == answer.frame_number:
                return frame
        return None


class Drawn:
    """The video with what was found in it.

    Attributes:
        found: frames with something.
    """

    def __init__(self, task: str, path: Path, video: Video) -> None:
        from cli.clips import VideoWriter
        from cli.drawing import DRAWINGS

        self._draw: Callable[[Any, Any], bool] = DRAWINGS[task]
        self._writer = VideoWriter(path, video.fps)
        self.close = self._writer.close
        self.found = 0

    def add(self, frame: Frame, answer: Any) -> None:
        """Adds a frame; one that was skipped stays as it is."""
        image = frame.image.copy()
        if not answer.skipped:
            self.found += self._draw(image, answer)
        self._writer.write(image)


@contextmanager
def _progress(
    task: str, video: Video, most: int, json: bool, quiet: bool
) -> Iterator[Callable[[], None]]:
    """A bar of the frames; none where the lines of the frames are on the same terminal."""
    if not output.progress_is_shown(json) or (output.is_terminal(sys.stdout) and not quiet):
        yield lambda: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=output.console(), transient=True) as progress:
        total = min(video.frames, most) if video.frames else None
        bar = progress.add_task(task, total=total)
        yield lambda: progress.advance(bar)


def _task(name: str) -> Task:
    if name not in TASKS:
        raise CliError(f"task {name!r} must be one of {', '.join(TASKS)}")
    return TASKS[name]


def _place(answer: Any) -> str:
    return f"{answer.frame_number:6} {answer.timestamp_ms / 1000:8.3f} s"


def _said(task: Task, answer: Any) -> str:
    if answer.skipped:
        return f"skipped: {answer.skip_message}"
    return "; ".join(task.found(answer)) or "nothing"
