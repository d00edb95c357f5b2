"""Settings of a service, from environment variables; each service extends these."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import AliasChoices, Field, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

log = logging.getLogger(__name__)

Settings = TypeVar("Settings", bound=BaseSettings)


class ServiceSettings(BaseSettings):
    """Settings of every service. A subclass sets `env_prefix` and its default ports."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on; containers use 0.0.0.0.")
    port: int = Field(0, ge=0, le=65535, description="Port.")
    metrics_host: str = Field("127.0.0.1", description="Address of the metrics page.")
    metrics_port: int = Field(0, ge=0, le=65535, description="Port of the metrics page; 0 is off.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Lowest log level that is written."
    )
    log_style: Literal["json", "text"] = Field("json", description="json, or text for humans.")
    logged_calls: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of the calls with status OK that are logged, chosen by their request "
        "ids, so that all services log the same ones. Other calls are always logged.",
    )
    max_concurrent_calls: int = Field(
        1024, ge=1, description="Most concurrent calls; more are RESOURCE_EXHAUSTED."
    )
    max_calls_per_caller: int = Field(
        512,
        ge=1,
        description="Most concurrent calls of one caller, as Envoy names it; more are "
        "RESOURCE_EXHAUSTED.",
    )
    reader_seconds: float = Field(
        60.0,
        gt=0,
        description="Seconds that a stream waits for its caller to read a response; "
        "DEADLINE_EXCEEDED after it.",
    )
    max_stall_seconds: float = Field(
        60.0,
        gt=0,
        description="Time for which the event loop may stand still before the process ends itself "
        "with its tracebacks in the log, to be started again.",
    )
    drain_seconds: float = Field(
        3.0,
        ge=0,
        description="On SIGTERM: time between NOT_SERVING and the refusal of new calls. "
        "Must be longer than the proxy's health interval.",
    )
    grace_seconds: float = Field(
        20.0, ge=0, description="On SIGTERM: time for running calls after the drain."
    )


class ServerSettings(ServiceSettings):
    """Further settings of a gRPC server."""

    port: int = Field(0, ge=0, le=65535, description="gRPC port.")
    max_message_bytes: int = Field(
        64 << 20, ge=1 << 10, description="Largest message received or sent, in bytes."
    )
    first_message_seconds: float = Field(
        10.0,
        gt=0,
        le=25,
        description="Seconds within which the first message of a stream must arrive; "
        "DEADLINE_EXCEEDED after it. Must be shorter than the proxy's request_timeout.",
    )
    stream_idle_seconds: float = Field(
        600.0,
        gt=0,
        description="Seconds without a message in either direction after which a stream is "
        "DEADLINE_EXCEEDED. Must be shorter than the proxy's idle_timeout.",
    )
    max_watches: int = Field(
        256,
        ge=1,
        description="Most streams of the health and reflection services at once; more are "
        "RESOURCE_EXHAUSTED. They do not count as calls.",
    )


class FileSettings(ServerSettings):
    """Further settings of a service that fetches model files."""

    provider_patience_seconds: float = Field(
        30.0,
        ge=0,
        description="Seconds that a fetch waits for a file provider that is down, such as one that "
        "restarts.",
    )
    max_chunk_bytes: int = Field(
        4 << 20,
        ge=1 << 10,
        description="Largest chunk of a file that is received, in bytes; a larger one is "
        "RESOURCE_EXHAUSTED.",
    )
    fetch_memory_mb: int = Field(
        32,
        ge=1,
        description="MiB of chunks that are being received or wait for the disk, of all fetches "
        "together; beyond this they wait for each other.",
    )
    parallel_fetches: int = Field(
        4,
        ge=1,
        le=64,
        description="Files of a model's weights that are fetched at once.",
    )
    fetch_bytes_per_second: int = Field(
        0,
        ge=0,
        description="Bytes a second that all fetches together receive, at most; 0 is no limit. A "
        "file that is linked from the cache of model_mgmt_svc does not count.",
    )
    quarantine_mb: int = Field(
        1024,
        ge=0,
        description="MiB of files that do not match their hash and are kept aside, at most 16; a "
        "larger one is removed. They count as part of the cache, and are removed first.",
    )
    cache_limit_mb: int = Field(
        0,
        ge=0,
        description="MiB of the cache on the disk, converted models included; 0 means 40 % of the "
        "disk. To make room, what no model uses is removed, the least recently used first.",
    )


class ModelHostSettings(FileSettings):
    """Further settings of a service that holds models."""

    admission_seconds: float = Field(
        10.0,
        ge=0,
        description="Seconds that a new replica waits to be admitted by model_mgmt_svc, counted "
        "from their last contact, before it takes calls anyway.",
    )
    store_dir: Path | None = Field(
        None,
        description="MODEL_MGMT_CACHE_DIR, where that is on the same file system and belongs to "
        "the same user: files are linked from there instead of copied. What cannot be linked is "
        "copied.",
    )


def read_settings(kind: type[Settings]) -> Settings:
    """Reads the settings of a service from the environment.

    Raises:
        SystemExit: some are not valid, with a line for each; or the command line asks for help,
            which is printed.
    """
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(help_text(kind))
        sys.exit()
    try:
        return kind()
    except ValidationError as error:
        sys.exit("\n".join(_sentence(kind, each) for each in error.errors()))


def help_text(kind: type[BaseSettings]) -> str:
    """All variables of a service, with their defaults and meanings."""
    lines = ["The settings are environment variables:", ""]
    for name, field in kind.model_fields.items():
        default = "" if field.default is None else field.default
        lines += [f"  {variable_name(kind, name)}={default}", f"      {field.description}"]
    return "\n".join(lines)


def variable_name(kind: type[BaseSettings], name: str) -> str:
    """The environment variable of a field, such as TEXT_PORT."""
    alias = kind.model_fields[name].validation_alias
    if isinstance(alias, AliasChoices):
        return str(alias.choices[0])
    return f"{kind.model_config['env_prefix']}{name}".upper()


def _sentence(kind: type[BaseSettings], fault: ErrorDetails) -> str:
    name = "_".join(map(str, fault["loc"]))
    if name in kind.model_fields:
        name = kind.model_config.get("env_prefix", "") + name
    return f"{name.upper()}={fault['input']}: {fault['msg']}"


def log_settings(settings: BaseSettings) -> None:
    """Logs the settings, with secrets masked (`pydantic.SecretStr` prints as stars)."""
    log.info("settings", extra={"settings": json.loads(settings.model_dump_json())})
