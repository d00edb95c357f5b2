"""What models are said to hold, and what they hold: `python -m tests.bench.model_memory`.

Prints a table and writes out/bench/model_memory.md. Loads one model of each kind into a text_svc of
its own, one after the other, and compares the figures of ListModels with what the system says of
the model's processes (RSS and PSS): after the load, after work, and when it is idle. The figures do
not depend on how busy the machine is.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
import tempfile
import time
import wave
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np

from ml import transformers_pb2 as pb
from ml.internal import worker_pb2
from tests.bench.results import parser_of
from tests.support.optional_models import SHARED
from tests.support.stack import MODELS
from tests.support.text_service import TextClient, TextService, text_service
from tools.docs.places import row

MIB = 1 << 20
TEXT = MODELS / "text"
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
LITERT_LM = SHARED / "models" / "smollm2-135m-instruct-w4.litertlm"
# Longer than text_svc keeps a measurement: it is new when it is compared.
REST_SECONDS = 3.0
GIVE_BACK_SECONDS = 5.0
# Said and measured may differ by this, see docs/operations.md.
MAX_DIFFERENCE = 0.1

Work = Callable[[TextClient, str], Awaitable[object]]


async def chat(client: TextClient, model: str) -> None:
    """Eight long answers at once, to long prompts of which no two begin alike."""

    async def one(index: int) -> None:
        prompt = f"{index}. " + "The sea was calm and the harbour was full of boats. " * 60
        await client.generate(model=model, prompt=prompt, max_length=100, temperature=0.0)

    await asyncio.gather(*map(one, range(8)))


async def embed(client: TextClient, model: str) -> None:
    """Two hundred texts of different lengths."""
    texts = [f"{index}. " + "The sea was calm. " * (1 + index % 40) for index in range(200)]
    await client.text.GenerateEmbeddings(pb.GenerateEmbeddingsRequest(model=model, texts=texts))


async def classify(client: TextClient, model: str) -> None:
    """Texts of different lengths, one after the other."""
    for index in range(20):
        text = "Jane Doe lives in Paris. " * (1 + index)
        await client.text.Infer(pb.InferRequest(model=model, text=text))


async def rank(client: TextClient, model: str) -> None:
    """A hundred documents of different lengths."""
    texts = [f"{index}. " + "The sea was calm. " * (1 + index % 20) for index in range(100)]
    ranking = pb.Ranking(query="Was the sea calm?", documents=texts)
    await client.text.Infer(pb.InferRequest(model=model, ranking=ranking))


async def hear(client: TextClient, model: str) -> None:
    """Ten seconds of a tone, three times."""
    sound = BytesIO()
    with wave.open(sound, "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        tone = 8000 * np.sin(np.arange(160_000) / 16000 * 2 * np.pi * 440)
        file.writeframes(tone.astype("<i2").tobytes())
    for _ in range(3):
        await client.text.Infer(
            pb.InferRequest(model=model, audio=pb.AudioData(data=sound.getvalue()))
        )


@dataclass(frozen=True)
class Case:
    """A model as it is loaded, and its work."""

    name: str
    model_id: str
    pipeline: str
    work: Work
    options: dict[str, str] = field(default_factory=dict)


CASES = (
    Case("chat, openvino", SMOLLM2, "text-generation", chat),
    Case("chat, torch_batch", SMOLLM2, "text-generation", chat, {"engine": "transformers"}),
    Case(
        "chat, litert",
        "local/litert-lm",
        "text-generation",
        chat,
        {"engine": "litert", "file": LITERT_LM.name},
    ),
    Case("embeddings, openvino", MINILM, "feature-extraction", embed),
    Case("embeddings, torch", MINILM, "feature-extraction", embed, {"engine": "transformers"}),
    Case("tokens' labels", "nationaldesignstudio/rampart", "token-classification", classify),
    Case("ranking", "cross-encoder/ms-marco-MiniLM-L-12-v2", "reranking", rank),
    Case("spoken texts", "rhasspy/en_US-joe-medium", "text-to-speech", classify),
    Case("speech", "openai/whisper-tiny.en", "automatic-speech-recognition", hear),
)


@dataclass(frozen=True)
class Reading:
    """What was said of a model, and what was measured, in bytes."""

    said: worker_pb2.ModelInfo
    rss: int
    pss: int

    @property
    def difference(self) -> float:
        """Of what was said from the PSS, as a share of it."""
        return abs(self.said.ram_bytes - self.pss) / self.pss

    def cells(self) -> list[str]:
        said = self.said
        figures = (said.ram_bytes, said.weights_bytes, said.cache_bytes, said.cache_limit_bytes)
        share = f"{(said.ram_bytes - self.pss) / self.pss:+.0%}"
        return [*(f"{each / MIB:.0f}" for each in (*figures, self.pss, self.rss)), share]


async def reading(service: TextService, client: TextClient, model_id: str) -> Reading:
    """Both, once the model rests."""
    await asyncio.sleep(REST_SECONDS)
    await client.info(model_id)  # has it measured
    await asyncio.sleep(0.5)
    return Reading(await client.info(model_id), *service.held(model_id))


async def readings(service: TextService, client: TextClient, case: Case) -> list[Reading]:
    """After the load, after work, and after the time without calls."""
    await client.load(case.model_id, case.pipeline, **case.options)
    seen = [await reading(service, client, case.model_id)]
    await case.work(client, case.model_id)
    seen.append(await reading(service, client, case.model_id))
    await asyncio.sleep(GIVE_BACK_SECONDS)
    deadline = time.monotonic() + 120
    while True:
        seen[2:] = [await reading(service, client, case.model_id)]
        if seen[2].said.cache_bytes == 0 or time.monotonic() > deadline:
            break
    await client.unload(case.model_id)
    return seen


def _link(source: str | Path, target: str | Path) -> None:
    """A hard link, or a copy on another disk."""
    try:
        Path(target).hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


@contextlib.contextmanager
def _service(folder: Path) -> Iterator[TextService]:
    models = folder / "models"
    shutil.rmtree(models, ignore_errors=True)
    shutil.copytree(TEXT, models, copy_function=_link)
    if LITERT_LM.is_file():
        (models / "local" / "litert-lm").mkdir(parents=True)
        _link(LITERT_LM, models / "local" / "litert-lm" / LITERT_LM.name)
    settings = {
        "TEXT_GIVE_BACK_SECONDS": str(GIVE_BACK_SECONDS),
        "TEXT_ADMISSION_SECONDS": "0",
        "TEXT_LOAD_TIMEOUT_SECONDS": "1800",
    }
    with text_service(models, folder, settings) as service:
        yield service


async def run(cases: Sequence[Case], folder: Path) -> tuple[str, float]:
    """The table, and the largest difference."""
    head = ("model", "when", "said", "weights", "cache", "cache limit", "PSS", "RSS", "said by PSS")
    lines = [row(*head), row("---", "---", *["---:"] * 7)]
    worst = 0.0
    with _service(folder) as service:
        async with service.client() as client:
            for case in cases:
                if not (service.models / case.model_id).is_dir():
                    print(f"{case.name}: {case.model_id} is not here", file=sys.stderr)
                    continue
                for when, each in zip(
                    ("loaded", "after work", "idle"),
                    await readings(service, client, case),
                    strict=True,
                ):
                    lines.append(row(case.name, when, *each.cells()))
                    print(lines[-1], flush=True)
                    worst = max(worst, each.difference)
    return "\n".join(lines), worst


def main() -> int:
    """Prints the table; 1 if a figure is not what was measured."""
    parser = parser_of(__doc__)
    parser.add_argument("--folder", type=Path, help="keeps the conversions, for another run")
    parser.add_argument("--cases", nargs="+", help="names, by default all")
    options = parser.parse_args()
    cases = [each for each in CASES if not options.cases or each.name in options.cases]
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        table, worst = asyncio.run(run(cases, folder))
    print(f"\n{table}\n\nlargest difference: {worst:.0%}")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "model_memory.md").write_text(table)
    return int(worst > MAX_DIFFERENCE)


if __name__ == "__main__":
    sys.exit(main())
