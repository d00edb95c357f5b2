"""The load options of a text model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.errors import UnknownOptionError
from shared.file_options import FileOptions
from shared.files.snapshot import WEIGHTS_INDEX_SUFFIX, WEIGHTS_SUFFIX

Model = TypeVar("Model", bound=BaseModel)


class LoadOptions(BaseModel):
    """How a model is loaded; the keys and values come from `LoadModelRequest.options`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: Literal["auto", "openvino", "transformers", "litert"] = Field(
        "auto",
        description="OpenVINO on the CPU, transformers, or LiteRT; auto is LiteRT for its own "
        "files, OpenVINO where it supports the model, otherwise transformers.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = Field(
        "auto",
        description="auto is float32 on the CPU and bfloat16 on CUDA. int8 needs engine openvino; "
        "it compresses weights, and activations too in embedding models.",
    )
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d{1,3})?)$", description="auto, cpu, cuda or cuda:N."
    )
    max_length: int | None = Field(
        None,
        ge=1,
        description="Tokens of prompt and answer, or of one text; at most the model's own.",
    )
    cache_size_mb: int | None = Field(
        None, ge=1, le=1 << 20, description="MiB of the key-value cache."
    )
    max_sequences: int | None = Field(
        None, ge=1, le=256, description="Generations at once; of a .tflite, calls."
    )
    temperature: float | None = Field(
        None,
        ge=0,
        le=100,
        allow_inf_nan=False,
        description="Of generations whose call sends none, instead of the model's own default; "
        "0 is greedy.",
    )
    file: str | None = Field(
        None,
        description="The path of the model's large file in the model: a .safetensors or its index, "
        "a .tflite or a .litertlm; by default the usual name.",
    )
    revision: str | None = Field(
        None,
        description="A branch, a tag or a commit of the model; by default the file provider's.",
    )
    tool_format: Literal[
        "auto",
        "deepseek",
        "functiongemma",
        "gemma4",
        "glm4",
        "hermes",
        "llama3",
        "mistral",
        "phi4",
        "qwen3-coder",
    ] = Field(
        "auto",
        description="How the model writes calls of tools; auto is as its chat template says.",
    )
    threads: int | None = Field(
        None,
        ge=1,
        le=256,
        description="Threads that compute, at most one per core; of a .tflite those of one call.",
    )

    @property
    def weights(self) -> str:
        """The option `file` of a model in safetensors; empty for the usual name."""
        file = self.file or ""
        return file if file.endswith((WEIGHTS_SUFFIX, WEIGHTS_INDEX_SUFFIX)) else ""


def parse_options(options: Mapping[str, str]) -> LoadOptions:
    """Parses the options of a request, where every value is a string.

    Raises:
        UnknownOptionError: an unknown name, or a value that does not fit; the message lists what
            is accepted.
        InvalidPathError, InvalidArgumentError: as `FileOptions.of`.
    """
    FileOptions.of(options)
    return parse_as(LoadOptions, options)


def parse_as(kind: type[Model], options: Mapping[str, str]) -> Model:
    """Parses options of another kind, such as those of a pipeline.

    Raises:
        UnknownOptionError: as `parse_options`.
    """
    try:
        return kind.model_validate(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])[:80]
        accepted = ", ".join(kind.model_fields) or "none"
        problem = (
            f"unknown option {name!r}"
            if first["type"] == "extra_forbidden"
            else f"option {name!r}: {first['msg']}"
        )
        raise UnknownOptionError(
            f"{problem}; accepted options are {accepted}", field=f"options[{name}]"
        ) from None
