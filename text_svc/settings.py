"""Settings of text_svc."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AliasChoices, Field, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from shared.caller import parse_weights
from shared.files.limits import JSON_BYTES, VOCABULARY_BYTES
from shared.settings import ModelHostSettings
from text_svc.processes.sandbox import SandboxMode


class TextSettings(ModelHostSettings):
    """Settings, read from environment variables `TEXT_*`."""

    model_config = SettingsConfigDict(env_prefix="TEXT_", extra="ignore", frozen=True)

    @field_validator("caller_weights", mode="before")
    @classmethod
    def _are_weights(cls, value: object) -> object:
        return parse_weights(value) if isinstance(value, str) else value

    port: int = Field(50062, ge=0, le=65535, description="gRPC port.")
    metrics_port: int = Field(
        9462, ge=0, le=65535, description="Port of the metrics page; 0 is off."
    )
    file_provider_addr: str = Field(
        "127.0.0.1:50061",
        validation_alias=AliasChoices("TEXT_FILE_PROVIDER_ADDR", "file_provider_addr"),
        description="Where model files come from, and who loads models for calls: model_mgmt_svc.",
    )
    cache_dir: Path = Field(Path("run/cache/text"), description="Folder of the model files.")
    converted_dir: Path | None = Field(
        None, description="Folder of the converted models; inside the cache by default."
    )
    memory_budget_mb: int = Field(
        0,
        ge=0,
        description="MiB that models may use together; 0 means 80 % of the memory of the "
        "container or machine.",
    )
    cuda_memory_budget_mb: int = Field(
        0,
        ge=0,
        description="MiB of each CUDA device that models may use together; 0 means 90 % of its "
        "memory.",
    )
    memory_margin_mb: int = Field(
        1024,
        ge=0,
        description="MiB that a model's process may take beyond a quarter more than it has "
        "reserved; it ends when it needs more.",
    )
    load_timeout_seconds: float = Field(
        600, gt=0, description="Time within which a model's process must become ready."
    )
    trial_seconds: float = Field(
        30,
        ge=0,
        description="Longest time for a model's trial, small calls that its process makes to "
        "itself; if one fails, the load fails. A model that takes longer is served. 0 makes no "
        "trial.",
    )
    hang_seconds: float = Field(
        30,
        gt=0,
        description="Time after which a model's process that neither answers nor finishes a step "
        "nor computes is ended, and the model loaded again.",
    )
    max_step_seconds: float = Field(
        900,
        gt=0,
        description="The same for a process that computes: the longest step, such as a long sound "
        "or a picture on a slow processor.",
    )
    abandoned_load_seconds: float = Field(
        60,
        ge=0,
        description="Time that a load goes on after model_mgmt_svc has gone away; it asks for the "
        "model again after its restart.",
    )
    tokenize_seconds: float = Field(
        30,
        gt=0,
        description="Time that a model's tokenizer may take for the texts of a call; then the call "
        "fails, and the model is loaded again.",
    )
    inspection_seconds: float = Field(
        120, gt=0, description="Time within which a model's files must be checked."
    )
    max_model_json_bytes: int = Field(
        JSON_BYTES, ge=1024, description="Bytes of a model's configuration or chat template."
    )
    max_vocabulary_bytes: int = Field(
        VOCABULARY_BYTES,
        ge=1024,
        description="Bytes of a model's file that lists tokens, merges or tensors.",
    )
    unload_grace_seconds: float = Field(
        10, ge=0, description="Time that running calls get when their model is unloaded."
    )
    kv_cache_mb: int = Field(
        1024,
        ge=1,
        description="Largest key-value cache of a model in MiB; less if the budget is short.",
    )
    give_back_seconds: float = Field(
        300,
        ge=0,
        description="Time without calls after which a model gives back the memory of its key-value "
        "cache, and what else its work has left; 0 is never.",
    )
    max_running: int = Field(
        32,
        ge=1,
        le=256,
        description="Generations that run at once, per model; a quarter more, where the engine "
        "batches, for callers that have none running.",
    )
    max_waiting: int = Field(
        512,
        ge=0,
        description="Generations of texts that wait, per model, and so the most callers that do.",
    )
    max_waiting_calls: int = Field(
        64,
        ge=0,
        description="Calls of Infer and generations with media that wait, per model.",
    )
    caller_weights: Annotated[dict[str, float], NoDecode] = Field(
        {},
        description="What callers get beside one that is not named, which has 1: names of API keys "
        "or certificates, or addresses, each with a number from 0.01 to 100, such as "
        "`app=4; nightly=0.5`.",
    )
    max_waiting_for_models: int = Field(
        256,
        ge=0,
        description="Calls that wait until their model is loaded for them, of all models together "
        "(AUTO_LOAD of model_mgmt_svc); more are RESOURCE_EXHAUSTED.",
    )
    max_texts: int = Field(2048, ge=1, description="Texts in one GenerateEmbeddings call.")
    max_call_tokens: int = Field(
        262_144, ge=1, description="Tokens of the texts of one GenerateEmbeddings call."
    )
    max_image_pixels: int = Field(
        50_000_000, ge=1, description="Pixels of all images of a call together."
    )
    max_map_pixels: int = Field(
        16_777_216,
        ge=1,
        description="Pixels of an image whose answer has its size, such as masks and depth, and of "
        "an image that is made of one.",
    )
    max_audio_seconds: float = Field(
        1800,
        gt=0,
        description="Seconds of all sounds of a call together; of one piece in TranscribeStream.",
    )
    max_whole_sound_seconds: float = Field(
        30,
        gt=0,
        description="Seconds of a sound that a model reads at once, to label it or to code it: a "
        "second takes some 40 MB.",
    )
    max_video_frames: int = Field(
        3000, ge=1, description="Frames of a video that are decoded in a call."
    )
    max_media: int = Field(
        16, ge=1, description="Images and sounds in one GenerateText or ChatCompletion call."
    )
    max_waiting_texts: int = Field(
        8192, ge=1, description="Texts that wait to be embedded, per model."
    )
    max_prompt_bytes: int = Field(
        4 << 20, ge=1, description="Bytes of all texts of a call together."
    )
    max_text_bytes: int = Field(
        1 << 20,
        ge=1,
        description="Bytes of each text of an Infer call, whose tokenizer takes up to 560 bytes of "
        "memory for each; for longer ones raise TEXT_MEMORY_MARGIN_MB too.",
    )
    sandbox: SandboxMode = Field(
        "auto",
        description="Whether a model's processes can open their model's files alone, and no "
        "network, by Landlock: auto, where the kernel has it; required, or text_svc does not "
        "start; off.",
    )
    threads: int = Field(0, ge=0, description="Threads of a model's process; 0 is one per core.")
    fork_server: bool = Field(
        True,
        description="Whether a process is kept that has imported the libraries, about 100 MB, and "
        "forks itself for the processes of models on OpenVINO, which load sooner.",
    )
