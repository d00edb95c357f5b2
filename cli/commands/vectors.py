"""`ml embed | rerank`: texts as vectors, and by how well they answer a query."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from cli import output
from cli.failures import CliError
from cli.inputs import read_lines
from cli.names import chosen_model
from cli.options import INT32, Model
from cli.registry import command
from cli.requests import stream
from cli.session import Session

_SHOWN_VALUES = 4


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    command(app, "embed")(embed)
    command(app, "rerank")(rerank)


def embed(
    session: Session,
    text: Annotated[
        list[str] | None,
        typer.Argument(help='Texts; "-" is each line of stdin. [default: the lines of stdin]'),
    ] = None,
    model: Model = "",
    prompt_name: Annotated[
        str, typer.Option(help='One of the model\'s own prompts, such as "query".')
    ] = "",
    dimensions: Annotated[
        int, typer.Option(min=0, max=INT32, help="Of each vector; 0 is all.")
    ] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the vectors as a .npy file.")
    ] = None,
) -> None:
    """Turn texts into vectors.

    Prints a line for each text: how like the first text it is (cosine), and the first values of its
    vector. With --json, all values.
    """
    from ml import transformers_pb2 as pb
    from ml import transformers_pb2_grpc

    texts: list[str] = []

    def requests(name: str) -> Iterator[pb.GenerateEmbeddingsRequest]:
        for batch in read_lines(text or ()):
            texts.extend(batch)
            yield pb.GenerateEmbeddingsRequest(
                texts=batch, model=name, prompt_name=prompt_name, dimensions=dimensions
            )

    vectors: list[Sequence[float]] = []
    with session.channel() as channel:
        stub = transformers_pb2_grpc.TransformersServiceStub(channel)
        name = chosen_model(session, channel, model, "GenerateEmbeddings")
        with stream(stub.StreamEmbeddings, requests(name), session.call) as answers:
            for answer in answers:
                for number, each in enumerate(answer.embeddings, answer.first_text):
                    values = output.plain(each)["values"]
                    if session.json:
                        output.json_line({"index": number, "values": values})
                    if out or not session.json:
                        vectors.append(values)
    if out:
        _write(out, vectors)
    if not session.json:
        rows = [
            [*_row(values, vectors[0]), each] for values, each in zip(vectors, texts, strict=True)
        ]
        output.table(("COSINE", "VALUES", "TEXT"), rows)


def _row(values: Sequence[float], first: Sequence[float]) -> list[str]:
    begin = " ".join(f"{value:+.3f}" for value in values[:_SHOWN_VALUES])
    return [f"{cosine(values, first):.3f}", f"{begin} … ({len(values)})"]


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    """Cosine of the angle between two vectors; 0 if one has no length."""
    lengths = math.sqrt(math.fsum(x * x for x in a) * math.fsum(x * x for x in b))
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths else 0.0


def _write(path: Path, vectors: Sequence[Sequence[float]]) -> None:
    import numpy as np

    with path.open("wb") as file:
        np.save(file, np.array(vectors, np.float32))


def rerank(
    session: Session,
    query: Annotated[str, typer.Argument(help="What is asked.")],
    document: Annotated[
        list[str] | None,
        typer.Argument(help='Texts; "-" is each line of stdin. [default: the lines of stdin]'),
    ] = None,
    model: Model = "",
    top: Annotated[int, typer.Option(min=1, help="Print this many. [default: all]")] = 1 << 30,
) -> None:
    """Order texts by how well they answer a query, the best first."""
    from ml import transformers_pb2 as pb
    from ml import transformers_pb2_grpc

    documents = [each for lines in read_lines(document or ()) for each in lines]
    if not documents:
        raise CliError("there are no texts to order")
    with session.channel() as channel:
        request = pb.InferRequest(
            model=chosen_model(session, channel, model, "reranking"),
            ranking=pb.Ranking(query=query, documents=documents),
        )
        stub = transformers_pb2_grpc.TransformersServiceStub(channel)
        answer = stub.Infer(request, **session.call)
    best = answer.documents[:top]
    if session.json:
        for each in best:
            output.json_line({**output.plain(each), "text": documents[each.index]})
    else:
        rows = [[f"{each.score:.4f}", documents[each.index]] for each in best]
        output.table(("SCORE", "TEXT"), rows)
