"""Inspections of models' files, each in a process that ends."""

from __future__ import annotations

import asyncio
from pathlib import Path

from shared.errors import InternalError, InvalidModelError, OutOfMemoryError
from shared.model_ids import ModelId
from text_svc.formats.weights import WeightSizes
from text_svc.inspection.spec import MEMORY_BYTES, InspectionReport, InspectionSpec
from text_svc.processes.fork_server import ForkServer
from text_svc.processes.spawn import spawn
from text_svc.settings import TextSettings

# Inspections at once; each may take some memory.
MAX_INSPECTIONS = 2


class Inspector:
    """Starts inspections, of which only `MAX_INSPECTIONS` run at once.

    Args:
        settings: limits.
        forks: forks their processes, if there is one.
    """

    def __init__(self, settings: TextSettings, forks: ForkServer | None = None) -> None:
        self._settings = settings
        self._forks = forks
        self._running = asyncio.Semaphore(MAX_INSPECTIONS)

    async def inspect(
        self, model_id: ModelId, folder: Path, scratch: Path, float_bytes: int, file: str = ""
    ) -> WeightSizes:
        """Checks a model's files and returns what its weights take in memory.

        Cancelling the call ends the process.

        Args:
            model_id: of the model.
            folder: of its files.
            scratch: a folder for temporary files, which its process makes and which goes with it.
            float_bytes: of a number in memory.
            file: the one that the model is, if it is one, such as "model.tflite".

        Raises:
            InvalidModelError: what is wrong with the files, also where they take too much time.
        """
        async with self._running:
            report = await self._report(model_id, folder, scratch, float_bytes, file)
        return WeightSizes(report.weight_bytes, report.shared_head_bytes)

    async def _report(
        self, model_id: ModelId, folder: Path, scratch: Path, float_bytes: int, file: str
    ) -> InspectionReport:
        settings = self._settings
        spec = InspectionSpec(
            model_id=model_id,
            scratch=scratch,
            sandbox=settings.sandbox,
            folder=await asyncio.to_thread(folder.resolve),
            float_bytes=float_bytes,
            file=file,
            max_model_json_bytes=settings.max_model_json_bytes,
            max_vocabulary_bytes=settings.max_vocabulary_bytes,
            log_level=settings.log_level,
            log_style=settings.log_style,
        )
        child = await spawn("text_svc.inspection", spec, threads=1, forks=self._forks)
        try:
            return await child.report(
                InspectionReport, f"inspecting model {model_id}", settings.inspection_seconds
            )
        except OutOfMemoryError:
            raise InvalidModelError(
                f"the files of model {model_id} take over {MEMORY_BYTES >> 20} MiB to inspect"
            ) from None
        except InternalError as error:  # it is too slow, or a library has ended it
            raise InvalidModelError(error.message) from None
        finally:
            await child.end()
