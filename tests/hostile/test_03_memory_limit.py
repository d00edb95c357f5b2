"""A process that takes more memory than its model may is the one that ends; callers hear why."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from ml import transformers_pb2 as pb
from shared.errors import OutOfMemoryError
from tests.support import tiny_models
from tests.support.attack import Attacks
from tests.support.sandboxed_child import TrialReport, TrialSpec
from tests.support.text_service import READY, text_service
from text_svc.processes.spawn import spawn

MIB = 1 << 20
MODEL = "tiny/bert"
# The limit of a model of a few kB with one thread and no margin, see `text_svc.models.budget`.
LIMIT_MB = 672


@pytest.mark.parametrize("take", ["private", "shared"])
async def test_a_process_ends_at_its_limit_and_the_reason_is_told(
    tmp_path: Path, take: str
) -> None:
    """Shared memory is not seen by the kernel's limit, but by the look of the front."""
    spec = TrialSpec(
        model_id=MODEL,
        scratch=tmp_path / "scratch",
        memory_bytes=256 * MIB,
        log_level="INFO",
        log_style="text",
        own=tmp_path,
        other=tmp_path,
        take_bytes=3 << 30,
        take=take,
    )
    child = await spawn("tests.support.sandboxed_child", spec, threads=1)
    try:
        with pytest.raises(OutOfMemoryError, match="took more than the 256 MiB"):
            await child.report(TrialReport, f"loading model {MODEL}", 60)
    finally:
        await child.end()


async def test_a_call_that_takes_too_much_is_told_so_and_others_are_served(
    attack: Attacks, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    tiny_models.build("bert", models / MODEL)
    small = {
        "TEXT_MEMORY_MARGIN_MB": "0",
        "TEXT_THREADS": "1",
        "TEXT_TOKENIZE_SECONDS": "300",  # memory comes first
    }
    with text_service(models, tmp_path, small) as service:
        async with service.client() as client:
            await client.load(MODEL, "tokenizer")
            with attack("3 memory of a process", processes=[service.process.pid]) as seen:
                large = pb.InferRequest(model=MODEL, text="." * (1 << 20))
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await client.text.Infer(large)
                assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert f"{LIMIT_MB} MiB" in (caught.value.details() or "")
                seen.say(f"RESOURCE_EXHAUSTED at {LIMIT_MB} MiB: {caught.value.details()}")
            assert service.process.is_running()
            if (await client.models())[MODEL] != READY:
                await client.load(MODEL, "tokenizer")
            answer = await client.text.Infer(pb.InferRequest(model=MODEL, text="a"))
            assert answer.tokens
