"""Settings of http_svc."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from shared.settings import ServiceSettings


class HttpSettings(ServiceSettings):
    """Environment variables `HTTP_*`; see the fields."""

    model_config = SettingsConfigDict(env_prefix="HTTP_", extra="ignore", frozen=True)

    port: int = Field(50064, ge=0, le=65535, description="HTTP port.")
    metrics_port: int = Field(
        9464, ge=0, le=65535, description="Port of the metrics page; 0 is off."
    )
    text_addr: str = Field("127.0.0.1:50062", description="Address of text_svc.")
    model_mgmt_addr: str = Field("127.0.0.1:50061", description="Address of model_mgmt_svc.")
    wait_seconds: float = Field(
        30, ge=0, description="Longest wait of a request for a service that is starting."
    )
    call_seconds: float = Field(
        600, gt=0, description="Longest time of a request that is not answered by a stream."
    )
    max_body_bytes: int = Field(
        32 << 20, ge=1 << 10, description="Largest body of a request; a larger one is 413."
    )
    body_memory_mb: int = Field(
        256,
        ge=1,
        description="MiB of bodies that are being received or answered, of all requests together; "
        "more are 429.",
    )
    page: bool = Field(
        False, description="Whether `/` is a page on which a person tries the services."
    )
    max_prompts: int = Field(
        128, ge=1, description="Prompts of a request of /v1/completions; more are 400."
    )
