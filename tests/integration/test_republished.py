"""A model that is republished under its id: the next load has its new files."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from ml import mediapipe_pb2, mediapipe_pb2_grpc, transformers_pb2, transformers_pb2_grpc
from tests.support import tiny_text
from tests.support.model_mgmt import ModelMgmt, model_mgmt
from tests.support.processes import free_port, process, ready_channel
from tests.support.providers import Provider, folder_files, old
from tests.support.waiting import until

LLAMA, FACES = "tiny/llama", "app/faces"
ASSET = "blaze_face_short_range.tflite"
START_SECONDS = 300.0

pytestmark = pytest.mark.timeout(900)


@contextlib.asynccontextmanager
async def one_service(
    kind: str, folder: Path, provider: str
) -> AsyncIterator[tuple[ModelMgmt, grpc.aio.Channel]]:
    """The control plane and one service that holds models."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    async with model_mgmt(folder / "plane", provider=provider, **{kind: address}) as plane:
        values = {
            "PORT": str(port),
            "METRICS_PORT": "0",
            "FILE_PROVIDER_ADDR": plane.address,
            "CACHE_DIR": str(folder / "cache"),
            "MODEL_DIR": str(folder / "none"),
            "DRAIN_SECONDS": "0",
        }
        env = {f"{kind.upper()}_{name}": value for name, value in values.items()}
        with process("-m", f"{kind}_svc", env=env):
            async with ready_channel(address, START_SECONDS) as channel:
                yield plane, channel


async def load(plane: ModelMgmt, model_id: str, kind: str) -> None:
    """Loads once the service can be asked."""

    async def loaded() -> bool:
        try:
            return bool((await plane.load(model_id, kind)).success)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return False

    await until(loaded, START_SECONDS)


def with_two_tokens_swapped(files: dict[str, bytes]) -> dict[str, bytes]:
    """The same model with another tokenizer, of the same size in bytes."""
    name = f"{LLAMA}/tokenizer.json"
    tokenizer = json.loads(files[name])
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["q"], vocabulary["z"] = vocabulary["z"], vocabulary["q"]
    same = json.dumps(json.loads(files[name])).encode()
    files[name] = same
    changed = json.dumps(tokenizer).encode()
    assert len(changed) == len(same)
    return files | {name: changed}


async def test_a_text_model(tmp_path: Path) -> None:
    first = folder_files(tiny_text.save_llama(tmp_path / "llama"), LLAMA)
    second = with_two_tokens_swapped(first)
    provider = Provider(first)
    provider.usual = old  # it tells no hash, and the sizes are the same
    async with provider.running(), one_service("text", tmp_path, provider.address) as (plane, text):
        stub = transformers_pb2_grpc.TransformersServiceStub(text)

        async def token() -> int:
            request = transformers_pb2.InferRequest(model=LLAMA, text="q")
            (token,) = (await stub.Infer(request)).tokens
            return int(token.id)

        await load(plane, LLAMA, "tokenizer")
        before = await token()
        provider.files = second
        await load(plane, LLAMA, "tokenizer")
        assert await token() == before  # it is loaded: nothing changes under its callers
        await plane.unload(LLAMA)
        await load(plane, LLAMA, "tokenizer")
        assert await token() != before
        await plane.unload(LLAMA)
        provider.files = {}
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await plane.load(LLAMA, "tokenizer")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_model_of_a_vision_task(tmp_path: Path, models: Path) -> None:
    from tests.support.vision_frames import encode_still
    from tools import vision_clips

    data, _ = encode_still(vision_clips.astronaut(), "jpeg")
    picture = mediapipe_pb2.ImageRequest(image_data=data, format="jpeg")
    versions = [
        {f"{FACES}/{ASSET}": (models / "vision" / name).read_bytes()}
        for name in (ASSET, "blaze_face_full_range_sparse.tflite")
    ]
    async with (
        Provider(versions[0]).running() as provider,
        one_service("vision", tmp_path, provider.address) as (plane, vision),
    ):
        stub = mediapipe_pb2_grpc.MediapipeServiceStub(vision)

        async def confidence() -> float:
            (face,) = (await stub.DetectFaces(picture)).faces
            return float(face.confidence)

        await load(plane, FACES, "face-detection")
        first = await confidence()
        await plane.unload(FACES)
        provider.files = versions[1]
        await load(plane, FACES, "face-detection")
        assert await confidence() != pytest.approx(first, abs=1e-4)
