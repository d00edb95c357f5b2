"""Chooses the engine of a model by its pipeline and options, before its files are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shared import pipelines
from shared.errors import InvalidArgumentError
from shared.files.snapshot import WEIGHTS_INDEX_SUFFIX, WEIGHTS_SUFFIX
from shared.model_host import HOST
from shared.pipelines import TEXT_GENERATION, Pipeline
from text_svc.convert import CONVERTERS
from text_svc.models.cuda import cuda_memory
from text_svc.options import LoadOptions
from text_svc.processes.specs import EngineName

# Pipelines without a text length to limit.
_WITHOUT_LENGTH = (
    *(pipelines.TOKENIZER, pipelines.IMAGE_TO_TEXT, pipelines.IMAGE_CLASSIFICATION),
    *(pipelines.OBJECT_DETECTION, pipelines.IMAGE_SEGMENTATION, pipelines.MASK_GENERATION),
    *(pipelines.DEPTH_ESTIMATION, pipelines.IMAGE_FEATURE_EXTRACTION, pipelines.IMAGE_TO_IMAGE),
    *(pipelines.VIDEO_CLASSIFICATION, pipelines.AUDIO_CLASSIFICATION, pipelines.AUDIO_TO_AUDIO),
    *(pipelines.SPEECH_RECOGNITION, pipelines.TEXT_TO_SPEECH, pipelines.LITERT),
)

# The engine for "auto", if it can run the model.
PREFERRED_ENGINE: EngineName = "openvino"
# What LiteRT runs, by the pipeline: the end of the file's name.
LITERT_FILES = {pipelines.LITERT.name: ".tflite", TEXT_GENERATION.name: ".litertlm"}
# Options that LiteRT's files leave no choice of.
_NOT_FOR_LITERT = ("dtype", "device", "cache_size_mb")


@dataclass(frozen=True)
class EnginePlan:
    """The engine that runs a model.

    Attributes:
        weight_bytes: memory that its weights take.
        converted: the converted folder, for OpenVINO.
        note: why it is not the engine that "auto" prefers.
    """

    name: EngineName
    weight_bytes: int
    converted: Path | None = None
    note: str = ""


def has_cuda() -> bool:
    """Whether this machine has a CUDA device and torch is a CUDA build, without importing torch."""
    return bool(cuda_memory())


def on_cuda(options: LoadOptions) -> bool:
    """Whether a model with these options runs on a CUDA device, unless LiteRT runs it."""
    return options.device.startswith("cuda") or (options.device == "auto" and has_cuda())


def memory_device(options: LoadOptions) -> str:
    """The device whose memory a model with these options takes for its weights and its cache."""
    if not on_cuda(options):
        return HOST
    return f"cuda:{int(options.device.partition(':')[2] or 0)}"


def wanted_engine(pipeline: Pipeline, options: LoadOptions) -> EngineName:
    """The engine that `options` ask for; "auto" is OpenVINO if it can run the model.

    Raises:
        InvalidArgumentError: options contradict each other, or one does not apply to the pipeline.
    """
    _check_options_apply(pipeline, options)
    if is_litert(pipeline, options):
        _check_litert(pipeline, options)
        return "litert"
    if options.file and not options.weights:
        raise InvalidArgumentError(
            f"option file is {options.file[:80]!r}; {pipeline.name} models are read from "
            f"{WEIGHTS_SUFFIX} files, or from their index ({WEIGHTS_INDEX_SUFFIX})",
            field="options[file]",
        )
    obstacle = _openvino_obstacle(pipeline, options)
    if options.engine == "openvino" and obstacle:
        raise InvalidArgumentError(obstacle, field="options[engine]")
    engine: EngineName = options.engine if options.engine != "auto" else PREFERRED_ENGINE
    if obstacle:
        engine = "transformers"
    if engine == "transformers" and options.dtype == "int8":
        raise InvalidArgumentError(
            f"dtype int8 needs engine openvino{', and ' + obstacle if obstacle else ''}",
            field="options[dtype]",
        )
    return engine


def is_litert(pipeline: Pipeline, options: LoadOptions) -> bool:
    """Whether LiteRT runs a model: by its pipeline, its option engine, or the name of its file."""
    if pipeline is pipelines.LITERT or options.engine == "litert":
        return True
    return (options.file or "").endswith(LITERT_FILES[TEXT_GENERATION.name])


def _check_litert(pipeline: Pipeline, options: LoadOptions) -> None:
    """Refuses what LiteRT cannot do."""
    suffix = LITERT_FILES.get(pipeline.name)
    if suffix is None:
        raise InvalidArgumentError(
            f"litert does not support {pipeline.name} models", field="options[engine]"
        )
    if options.engine not in ("auto", "litert"):
        raise InvalidArgumentError(
            f"{options.engine} does not read {suffix} files; engine must be litert or auto",
            field="options[engine]",
        )
    if options.file is not None and not options.file.endswith(suffix):
        raise InvalidArgumentError(
            f"option file is {options.file[:80]!r}; for {pipeline.name} models litert reads "
            f"{suffix} files",
            field="options[file]",
        )
    for name in _NOT_FOR_LITERT:
        value = getattr(options, name)
        if value not in (None, "auto") and (name, value) != ("device", "cpu"):
            raise InvalidArgumentError(
                f"option {name} has no effect on {suffix} files"
                + (", which run on the CPU" if name == "device" else ""),
                field=f"options[{name}]",
            )
    if pipeline is TEXT_GENERATION and (options.max_sequences or 1) > 1:
        raise InvalidArgumentError(
            f"option max_sequences is {options.max_sequences}, but LiteRT-LM generates one text "
            "at a time; further calls wait for their turn",
            field="options[max_sequences]",
        )


def effective_options(pipeline: Pipeline, options: LoadOptions) -> dict[str, str]:
    """The options that are in force, with what "auto" stands for; those without a value left out.

    Raises:
        InvalidArgumentError: as `wanted_engine`.
    """
    engine = wanted_engine(pipeline, options)
    values = options.model_dump(exclude_none=True) | {"engine": engine}
    if engine == "litert":
        values = {name: value for name, value in values.items() if name not in _NOT_FOR_LITERT}
        return {name: str(value) for name, value in values.items()}
    cuda = on_cuda(options)
    if options.device == "auto":
        values["device"] = "cuda" if cuda else "cpu"
    if options.dtype == "auto":
        values["dtype"] = "bfloat16" if cuda else "float32"
    return {name: str(value) for name, value in values.items() if value != ""}


def _check_options_apply(pipeline: Pipeline, options: LoadOptions) -> None:
    for name, used in (
        ("max_length", pipeline not in _WITHOUT_LENGTH),
        ("max_sequences", "GenerateText" in pipeline.calls or pipeline is pipelines.LITERT),
        ("temperature", "GenerateText" in pipeline.calls),
        ("cache_size_mb", pipeline is TEXT_GENERATION),
    ):
        if getattr(options, name) is not None and not used:
            raise InvalidArgumentError(
                f"option {name} has no effect on {pipeline.name} models", field=f"options[{name}]"
            )


def _openvino_obstacle(pipeline: Pipeline, options: LoadOptions) -> str:
    """Why OpenVINO cannot run such a model; empty if it can."""
    if pipeline.name not in CONVERTERS:
        return f"openvino does not support {pipeline.name} models"
    if on_cuda(options):
        return "openvino runs on the CPU only"
    if options.dtype == "float16":
        return "openvino does not support float16"
    return ""
