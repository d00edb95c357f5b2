"""`ml chat | generate`: text that comes as it is written."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import output
from cli.failures import CliError
from cli.inputs import picture_format, read_bytes, read_text
from cli.names import chosen_model
from cli.options import INT32, UINT64, Model
from cli.registry import command
from cli.session import Session

if TYPE_CHECKING:
    from ml.transformers_pb2 import ChatMessage, ChatRequest, ImageData, TextRequest

_PROMPT = ">>> "

Image = Annotated[
    list[Path] | None,
    typer.Option("--image", "-i", help="A picture for a model that sees; repeatable."),
]
MaxTokens = Annotated[
    int, typer.Option(min=0, max=INT32, help="Most new tokens; 0 is the default.")
]
Temperature = Annotated[float | None, typer.Option(min=0, help="0 always takes the likeliest.")]
TopP = Annotated[float | None, typer.Option(min=0, max=1, help="Share of likely tokens.")]
Seed = Annotated[
    int | None, typer.Option(min=0, max=UINT64, help="The same seed gives the same text.")
]
Stop = Annotated[list[str] | None, typer.Option(help="The text ends before this text; repeatable.")]
Schema = Annotated[
    Path | None, typer.Option(help="File with a JSON schema that the answer must fit.")
]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    command(app, "chat")(chat)
    command(app, "generate")(generate)


def chat(
    session: Session,
    message: Annotated[
        list[str] | None, typer.Argument(help='The question; "-" is stdin, after or before it.')
    ] = None,
    model: Model = "",
    system: Annotated[str, typer.Option("--system", "-s", help="What the model should be.")] = "",
    image: Image = None,
    max_tokens: MaxTokens = 0,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = None,
    stop: Stop = None,
    json_schema: Schema = None,
) -> None:
    """Ask a model, and print its answer as it comes.

    Without a question, in a terminal: a conversation, until Ctrl-D. Ctrl-C ends an answer.
    """
    from ml import transformers_pb2 as pb

    request = pb.ChatRequest(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    request.stop.extend(stop or ())
    if json_schema:
        request.response_format.json_schema = _read_schema(json_schema)
    if system:
        request.messages.append(pb.ChatMessage(role="system", content=system))
    talks = not message and sys.stdin.isatty() and not session.json
    if not talks:
        question = pb.ChatMessage(role="user", content=read_text(message or ()))
        question.images.extend(_pictures(image))
        request.messages.append(question)
    elif image:
        raise CliError("--image needs a question as an argument")
    with session.channel() as channel:
        from ml import transformers_pb2_grpc

        stub = transformers_pb2_grpc.TransformersServiceStub(channel)
        request.model = chosen_model(session, channel, model, "ChatCompletion")
        if talks:
            _talk(stub, session, request)
        else:
            _answer(stub, session, request)


def _answer(stub: Any, session: Session, request: ChatRequest) -> str:
    """Prints an answer, and returns its text."""
    with _stream(stub.ChatCompletion, request, session) as messages:
        if session.json:
            for message in messages:
                output.json_line(output.plain(message))
            return ""
        return _print(message.content for message in messages)


def _talk(stub: Any, session: Session, request: ChatRequest) -> None:
    """A conversation; an answer that was stopped or refused leaves it as it was before."""
    import contextlib

    import grpc

    from cli.failures import of_call
    from ml import transformers_pb2 as pb

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # input() then has a history
    output.note(f"{request.model}; Ctrl-D ends the conversation, Ctrl-C an answer")
    for question in _questions():
        request.messages.append(pb.ChatMessage(role="user", content=question))
        try:
            answer = _answer(stub, session, request)
        except KeyboardInterrupt:
            output.line("")
            del request.messages[-1]
        except grpc.RpcError as error:
            output.note(f"ml: {of_call(error, session.address)}")
            del request.messages[-1]
        else:
            request.messages.append(_assistant(answer))


def _assistant(text: str) -> ChatMessage:
    from ml import transformers_pb2 as pb

    return pb.ChatMessage(role="assistant", content=text)


def _questions() -> Iterator[str]:
    while True:
        try:
            question = input(_PROMPT).strip()
            question.encode()
        except EOFError:
            output.line("")
            return
        except UnicodeError:
            output.note("ml: that is not text")
            continue
        if question:
            yield question


def generate(
    session: Session,
    prompt: Annotated[
        list[str] | None, typer.Argument(help='The beginning; "-" is stdin. [default: stdin]')
    ] = None,
    model: Model = "",
    image: Image = None,
    max_tokens: MaxTokens = 0,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = None,
    stop: Stop = None,
    json_schema: Schema = None,
) -> None:
    """Continue a text, without a chat template, and print what comes."""
    from ml import transformers_pb2 as pb
    from ml import transformers_pb2_grpc

    request = pb.TextRequest(
        prompt=read_text(prompt or ()),
        max_length=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        stop=stop or (),
        images=_pictures(image),
    )
    if json_schema:
        request.response_format.json_schema = _read_schema(json_schema)
    with session.channel() as channel:
        stub = transformers_pb2_grpc.TransformersServiceStub(channel)
        request.model = chosen_model(session, channel, model, "GenerateText")
        with _stream(stub.GenerateText, request, session) as messages:
            if session.json:
                for message in messages:
                    output.json_line(output.plain(message))
            else:
                _print(message.text for message in messages)


@contextmanager
def _stream(rpc: Any, request: ChatRequest | TextRequest, session: Session) -> Iterator[Any]:
    """The messages of an answer. The call ends with the block: its work stops within a token."""
    call = rpc(request, **session.call)
    try:
        yield call
    finally:
        call.cancel()


def _print(pieces: Iterable[str]) -> str:
    """Prints pieces of a text as they come, and a line's end if the text has none."""
    text = ""
    for piece in pieces:
        output.write(piece)
        text += piece
    if not text.endswith("\n"):
        output.line("")
    return text


def _pictures(paths: list[Path] | None) -> list[ImageData]:
    from ml import transformers_pb2 as pb

    pictures = []
    for path in paths or ():
        data = read_bytes(str(path))
        picture_format(str(path), data)
        pictures.append(pb.ImageData(data=data))
    return pictures


def _read_schema(path: Path) -> str:
    return read_bytes(str(path)).decode(errors="replace")
