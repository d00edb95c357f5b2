"""Calls to a stack whose answers only count: by the tonic client, or by Python without it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import grpc

from ml import transformers_pb2 as pb
from tests.bench.rust_client import RustClient
from tests.bench.text_types import as_chat


class Caller:
    """Callers of one stack.

    Args:
        address: of Envoy.
        rust: the tonic client; without it Python calls.
    """

    def __init__(self, address: str, rust: RustClient | None) -> None:
        self._address = address
        self._rust = rust

    async def chat(self, model: str, questions: Sequence[str], tokens: int) -> int:
        """A greedy answer to each question, all at once; the number of tokens."""
        if self._rust:
            outcome = await asyncio.to_thread(
                self._rust.run,
                "text",
                endpoint=f"http://{self._address}",
                rpc="chat",
                model=model,
                questions=list(questions),
                max_tokens=tokens,
                temperature=0.0,
            )
            return sum(caller["tokens"] for caller in outcome["callers"])
        async with grpc.aio.insecure_channel(self._address) as channel:
            call = channel.unary_stream("/ml.TransformersService/ChatCompletion")

            async def one(question: str) -> int:
                request = pb.ChatRequest(
                    messages=[pb.ChatMessage(**message) for message in as_chat(question)],
                    model=model,
                    temperature=0,
                    max_tokens=tokens,
                )
                async for message in call(request.SerializeToString()):
                    last = message
                return pb.ChatResponse.FromString(last).usage.generated_tokens

            return sum(await asyncio.gather(*map(one, questions)))

    async def embed(self, model: str, texts: Sequence[str], callers: int, seconds: float) -> int:
        """Callers of one text in a closed loop; the number of calls."""
        if self._rust:
            outcome = await asyncio.to_thread(
                self._rust.run,
                "embeddings",
                endpoint=f"http://{self._address}",
                model=model,
                texts=list(texts),
                callers=callers,
                batch=1,
                seconds=seconds,
                connections=1,
            )
            return len(outcome["latencies"])
        end = time.monotonic() + seconds
        async with grpc.aio.insecure_channel(self._address) as channel:
            call = channel.unary_unary("/ml.TransformersService/GenerateEmbeddings")

            async def one(first: int) -> int:
                count = 0
                while time.monotonic() < end:
                    text = texts[(first + count * callers) % len(texts)]
                    request = pb.GenerateEmbeddingsRequest(model=model, texts=[text])
                    await call(request.SerializeToString())
                    count += 1
                return count

            return sum(await asyncio.gather(*map(one, range(callers))))
