"""model_mgmt_svc and text_svc as processes, with a provider of tiny models and without Envoy."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path

import grpc

from ml import model_management_pb2 as pb
from ml import transformers_pb2, transformers_pb2_grpc
from tests.support import tiny_text
from tests.support.model_mgmt import ModelMgmt, model_mgmt
from tests.support.processes import free_port, process, ready_channel
from tests.support.providers import Provider, folder_files
from tests.support.waiting import until

START_SECONDS = 300.0


@dataclass
class PlaneAndText:
    """The control plane and text_svc."""

    plane: ModelMgmt
    text: transformers_pb2_grpc.TransformersServiceStub

    async def load(self, model_id: str, **options: str) -> pb.LoadModelResponse:
        response: pb.LoadModelResponse = await self.plane.load(model_id, options=options)
        return response

    async def load_when_up(self, model_id: str, **options: str) -> None:
        """Loads a model as soon as text_svc has started."""

        async def loaded() -> bool:
            try:
                await self.load(model_id, **options)
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.UNAVAILABLE  # noqa: PT017
                return False
            return True

        await until(loaded, START_SECONDS)

    async def listed(self) -> list[pb.ModelStatus]:
        """The status of each model."""
        return list((await self.plane.stub.ListModels(pb.ListModelsRequest())).models)

    async def states(self) -> dict[str, tuple[str, str]]:
        """The state of each model and its reason."""
        return {
            model.model_id: (
                pb.ModelState.Name(model.state).removeprefix("MODEL_STATE_"),
                model.reason,
            )
            for model in await self.listed()
        }

    async def answer(self, model_id: str, length: int = 8) -> str:
        request = transformers_pb2.TextRequest(
            model=model_id, prompt="the sea", max_length=length, temperature=0
        )
        return "".join([each.text async for each in self.text.GenerateText(request)])


@contextlib.asynccontextmanager
async def plane_and_text(
    folder: Path, models: Iterable[str], *, memory_budget_mb: int, **plane_settings: str
) -> AsyncIterator[PlaneAndText]:
    """Both services; the provider has the same tiny model under each of the ids."""
    files: dict[str, bytes] = {}
    made = tiny_text.save_llama(folder / "llama")
    for model_id in models:
        files |= folder_files(made, model_id)
    port = free_port()
    address = f"127.0.0.1:{port}"
    async with (
        Provider(files).running() as provider,
        model_mgmt(
            folder / "plane", provider=provider.address, text=address, **plane_settings
        ) as plane,
    ):
        settings = {
            "PORT": str(port),
            "METRICS_PORT": "0",
            "FILE_PROVIDER_ADDR": plane.address,
            "CACHE_DIR": str(folder / "cache"),
            "DRAIN_SECONDS": "0",
            "MEMORY_BUDGET_MB": str(memory_budget_mb),
        }
        env = {f"TEXT_{name}": value for name, value in settings.items()}
        with process("-m", "text_svc", env=env):
            async with ready_channel(address, START_SECONDS) as channel:
                yield PlaneAndText(plane, transformers_pb2_grpc.TransformersServiceStub(channel))
