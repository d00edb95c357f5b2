"""Settings of model_mgmt_svc."""

from __future__ import annotations

from pathlib import Path

from pydantic import AliasChoices, Field, field_validator
from pydantic_settings import SettingsConfigDict

from model_mgmt_svc.auto_load import AutoLoad
from shared.settings import FileSettings


class ModelMgmtSettings(FileSettings):
    """`FileSettings` with the default ports of this service, and what it manages."""

    model_config = SettingsConfigDict(env_prefix="MODEL_MGMT_", populate_by_name=True)

    port: int = Field(50061, ge=0, le=65535, description="gRPC port.")
    metrics_port: int = Field(
        9461, ge=0, le=65535, description="Port of the metrics page; 0 is off."
    )
    text_addrs: str = Field(
        "127.0.0.1:50062",
        description="host:port of text_svc, several separated by commas; a host name with several "
        "addresses counts as several replicas.",
    )
    vision_addrs: str = Field(
        "127.0.0.1:50063",
        description="host:port of vision_svc, several separated by commas; a host name with "
        "several addresses counts as several replicas.",
    )
    file_provider_addr: str = Field(
        "localhost:50052",
        validation_alias=AliasChoices("MODEL_MGMT_FILE_PROVIDER_ADDR", "FILE_PROVIDER_ADDR"),
        description="host:port of the application's model cache. Also FILE_PROVIDER_ADDR.",
    )
    cache_dir: Path = Field(
        Path.home() / ".cache/ml-services/model_mgmt",
        description="Cache of model files; must not be shared with the other services.",
    )
    state_dir: Path = Field(
        Path.home() / ".local/state/ml-services/model_mgmt",
        description="The record of the desired models.",
    )
    lease_seconds: float = Field(
        10.0,
        ge=1,
        le=600,
        description="Time without a sign of life after which a model_mgmt_svc loses the lease on "
        "MODEL_MGMT_STATE_DIR to another one that waits for it.",
    )
    reconcile_seconds: float = Field(
        2.0, gt=0, description="Time between comparisons of desired and loaded models."
    )
    start_seconds: float = Field(
        30.0,
        ge=0,
        description="Time that LoadModel waits for a service that is starting; one that has been "
        "away for longer is UNAVAILABLE at once.",
    )
    models_file: Path | None = Field(
        None,
        description="TOML file of models that are desired beside those that callers load; read at "
        "the start and when it changes.",
    )
    keep_alive: float = Field(
        -1.0,
        ge=-1,
        description="Seconds without calls after which a model is taken out of memory, unless its "
        "option keep_alive says otherwise; 0 at once after a call, -1 never.",
    )
    max_load_failures: int = Field(
        5, ge=1, description="Failed loads in a row after which a desired model is left FAILED."
    )
    watch_seconds: float = Field(
        3600.0,
        ge=0,
        description="Life of a stream of WatchModels, of the health or of the reflection service, "
        "which then is UNAVAILABLE; 0 is unlimited.",
    )
    max_loads: int = Field(
        64,
        ge=1,
        description="Models that are loaded at once, since a load goes on when its callers leave; "
        "more are RESOURCE_EXHAUSTED.",
    )
    auto_load: str = Field(
        "false",
        validation_alias=AliasChoices("MODEL_MGMT_AUTO_LOAD", "AUTO_LOAD"),
        description="Whether calls of text_svc load the model that they ask for: true, false, or "
        "patterns of model ids, separated by commas, such as `org/*`. A model that was evicted "
        "comes back on call unless this is false. Also AUTO_LOAD.",
    )
    auto_load_wait_seconds: float = Field(
        30.0,
        ge=0,
        validation_alias=AliasChoices(
            "MODEL_MGMT_AUTO_LOAD_WAIT_SECONDS", "AUTO_LOAD_WAIT_SECONDS"
        ),
        description="How long calls wait at most for room that models in use take: then one that "
        "has been in memory for as long takes no more calls until it has been evicted. 0 loads in "
        "the order of the calls. Also AUTO_LOAD_WAIT_SECONDS.",
    )
    auto_load_idle_seconds: float = Field(
        1.0,
        ge=0,
        description="How long a model has had no calls before it is evicted for calls that wait "
        "for another one.",
    )
    chunk_bytes: int = Field(
        102_400, ge=1024, le=4_000_000, description="Data bytes in one message of GetModelFile."
    )
    max_file_streams: int = Field(
        64,
        ge=1,
        description="Most concurrent GetModelFile calls through Envoy, and as many again of the "
        "other services, so that callers never keep these from their files; more are "
        "RESOURCE_EXHAUSTED.",
    )

    @field_validator("models_file", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return value or None

    @field_validator("auto_load")
    @classmethod
    def _is_readable(cls, text: str) -> str:
        AutoLoad.parse(text)
        return text
