"""The ASGI application: which operation answers at which path."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from http_svc import bodies, errors, openapi, page
from http_svc.answers import JSON, Answer, Whole, as_json
from http_svc.anthropic import conversation, messages
from http_svc.bodies import Body, BodyReader
from http_svc.errors import Dialect, MethodError, NoRouteError
from http_svc.openai import (
    chat,
    completions,
    embeddings,
    models,
    rerank,
    responses,
    speech,
    transcriptions,
)
from http_svc.requests import Endpoint, Limits, Operation
from http_svc.services import Services
from shared.errors import ServiceError
from shared.rpc.call_limit import Slots


@dataclass(frozen=True)
class Posted:
    """An operation with a body.

    Attributes:
        path: where it is.
        body: its fields.
        run: makes the answer, from the body, for a form its file, and the services.
        summary: what it does.
        form: whether the body is a form with a file, instead of JSON.
        streams: whether it can answer with events.
        dialect: how errors are written.
    """

    path: str
    body: type[Body]
    run: Callable[..., Awaitable[Answer]]
    summary: str
    form: bool = False
    streams: bool = False
    dialect: Dialect = errors.openai


POSTED = (
    Posted(
        "/v1/chat/completions",
        chat.ChatBody,
        chat.chat,
        "The next message of a conversation",
        streams=True,
    ),
    Posted(
        "/v1/completions",
        completions.CompletionBody,
        completions.complete,
        "Continues prompts",
        streams=True,
    ),
    Posted(
        "/v1/responses",
        responses.ResponseBody,
        responses.respond,
        "The answer to a conversation",
        streams=True,
    ),
    Posted(
        "/v1/responses/input_tokens",
        responses.Conversation,
        responses.count_tokens,
        "The number of tokens of a conversation",
    ),
    Posted(
        "/v1/embeddings",
        embeddings.EmbeddingBody,
        embeddings.embed,
        "Texts to vectors",
    ),
    Posted(
        "/v1/rerank",
        rerank.RerankBody,
        rerank.rerank,
        "Orders documents by how well they answer a query",
    ),
    Posted(
        "/v2/rerank",
        rerank.RerankBody,
        rerank.rerank,
        "The same, where clients of Cohere look for it",
    ),
    Posted(
        "/v1/audio/transcriptions",
        transcriptions.TranscriptionBody,
        transcriptions.transcribe,
        "Speech to text",
        form=True,
        streams=True,
    ),
    Posted(
        "/v1/audio/translations",
        transcriptions.TranscriptionBody,
        transcriptions.translate,
        "Speech to English text",
        form=True,
        streams=True,
    ),
    Posted(
        "/v1/audio/speech",
        speech.SpeechBody,
        speech.speak,
        "Text to speech",
    ),
    Posted(
        "/v1/messages",
        messages.MessagesBody,
        messages.answer,
        "The next message of a conversation, for clients of Anthropic",
        streams=True,
        dialect=errors.anthropic,
    ),
    Posted(
        "/v1/messages/count_tokens",
        conversation.Conversation,
        messages.count_tokens,
        "The number of tokens of a conversation",
        dialect=errors.anthropic,
    ),
)


@dataclass
class Health:
    """Whether the service takes requests."""

    serving: bool = True


def application(services: Services, health: Health | None = None) -> Starlette:
    """The application.

    Args:
        services: what it calls.
        health: what `/health` says.
    """
    settings, state = services.settings, health or Health()
    limits = Limits(
        Slots(settings.max_concurrent_calls, "requests", per_caller=settings.max_calls_per_caller),
        BodyReader(settings.max_body_bytes, settings.body_memory_mb << 20),
        settings.reader_seconds,
        settings.logged_calls,
    )

    def route(path: str, method: str, operation: Operation, dialect: Dialect) -> Route:
        return Route(path, Endpoint(path, operation, dialect, limits), methods=[method])

    async def list_models(_: Headers, __: dict[str, Any], ___: bytes) -> Answer:
        return await models.list_models(services)

    async def get_model(_: Headers, parameters: dict[str, Any], __: bytes) -> Answer:
        return await models.get_model(parameters["model"], services)

    async def document(_: Headers, __: dict[str, Any], ___: bytes) -> Answer:
        return Whole(_document())

    async def check(_: Request) -> Response:
        return Response(status_code=200 if state.serving else 503)

    routes = [route(each.path, "POST", _operation(each, services), each.dialect) for each in POSTED]
    routes += [
        route("/v1/models", "GET", list_models, errors.openai),
        route("/v1/models/{model:path}", "GET", get_model, errors.openai),
        route("/v1/openapi.json", "GET", document, errors.openai),
        Route("/health", check),
    ]
    if settings.page:
        routes += page.routes()
    made = Starlette(routes=routes, exception_handlers={HTTPException: _no_such})
    # The address of a redirect would be the one that the client says it has called.
    made.router.redirect_slashes = False
    return made


def _operation(posted: Posted, services: Services) -> Operation:
    async def run(headers: Headers, _: dict[str, Any], data: bytes) -> Answer:
        return await posted.run(await bodies.parse(posted.body, data), services)

    async def run_form(headers: Headers, _: dict[str, Any], data: bytes) -> Answer:
        body, file = await bodies.parse_form(posted.body, headers, data)
        return await posted.run(body, file, services)

    return run_form if posted.form else run


async def _no_such(request: Request, raised: Exception) -> Response:
    """No such path, or another method."""
    path, headers = request.scope["path"][:200], {}
    if isinstance(raised, HTTPException) and raised.status_code == 405:
        error: ServiceError = MethodError(f"{path} does not take {request.method[:20]}")
        headers = dict(raised.headers or {})
    else:
        error = NoRouteError(f"there is nothing at {path}")
    dialect = errors.anthropic if path.startswith("/v1/messages") else errors.openai
    return Response(as_json(dialect(error)), errors.status(error), headers=headers, media_type=JSON)


@cache
def _document() -> bytes:
    return as_json(openapi.document(POSTED))
