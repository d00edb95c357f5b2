"""Settings of vision_svc."""

from __future__ import annotations

from pathlib import Path

from pydantic import AliasChoices, Field
from pydantic_settings import SettingsConfigDict

from shared.settings import ModelHostSettings
from vision_svc.frames.types import (
    MAX_PIXELS,
    MAX_SIDE,
)


class VisionSettings(ModelHostSettings):
    """Environment variables `VISION_*`; see the fields."""

    model_config = SettingsConfigDict(env_prefix="VISION_", extra="ignore", frozen=True)

    port: int = Field(50063, ge=0, le=65535, description="gRPC port.")
    metrics_port: int = Field(
        9463, ge=0, le=65535, description="Port of the metrics page; 0 is off."
    )
    # An alias, since pydantic keeps the prefix "model_" to itself.
    assets_dir: Path = Field(
        Path("models/vision"),
        validation_alias=AliasChoices("VISION_MODEL_DIR", "assets_dir"),
        description="Folder of the tasks' model files.",
    )
    file_provider_addr: str = Field(
        "127.0.0.1:50061",
        description="Address from which the files of loaded models are read: model_mgmt_svc.",
    )
    cache_dir: Path = Field(
        Path("run/cache/vision"), description="Cache of the files of loaded models."
    )
    workers: int = Field(0, ge=0, description="Threads that run frames; 0 is one per core.")
    max_streams: int = Field(
        16, ge=1, description="Open streams that have sent a frame; more are RESOURCE_EXHAUSTED."
    )
    max_waiting_calls: int = Field(
        64, ge=0, description="Single pictures that wait for a thread; more are RESOURCE_EXHAUSTED."
    )
    instance_memory_mb: int = Field(
        2048,
        ge=64,
        description="MiB that all task instances together may use; at most 60 % of the memory of "
        "the container or machine.",
    )
    max_idle_instances: int = Field(
        8, ge=0, description="Idle task instances that are kept for later calls."
    )
    max_pixels: int = Field(MAX_PIXELS, ge=1, description="Pixels of a picture, at most.")
    max_side: int = Field(
        MAX_SIDE, ge=1, le=32_767, description="Width or height of a picture, at most."
    )
    hang_seconds: float = Field(
        30,
        gt=0,
        description="Time that a frame, a picture or the opening of a model may take in its "
        "thread; after that its caller gets UNAVAILABLE, and the process ends, to be started "
        "again.",
    )
    max_failed_graphs: int = Field(
        3,
        ge=1,
        description="Number of failed MediaPipe graphs after which the process ends, to be started "
        "again, since failed graphs leak threads.",
    )
