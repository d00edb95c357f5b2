"""Where the stack is and who calls: the options that all commands share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from cli.failures import CliError

if TYPE_CHECKING:
    import grpc

# Envoy's ports: plain, with TLS, and for clients with a certificate.
PORT, TLS_PORT, MTLS_PORT = 50051, 50053, 50054


@dataclass(frozen=True)
class Session:
    """How a command reaches the stack.

    Attributes:
        address: host:port of Envoy.
        json: whether results are JSON lines.
        metadata: of every call: the caller's key, if there is one.
        tls: authority, certificate and key in PEM; None for a connection without TLS.
        timeout: seconds that a call may take, None for no limit.
    """

    address: str
    json: bool
    metadata: tuple[tuple[str, str], ...]
    tls: tuple[bytes | None, bytes | None, bytes | None] | None
    timeout: float | None

    @property
    def call(self) -> dict[str, Any]:
        """What every call is given."""
        return {"metadata": self.metadata, "timeout": self.timeout}

    @contextmanager
    def channel(self) -> Iterator[grpc.Channel]:
        """A channel to Envoy, which is closed at the end, and its calls with it."""
        import grpc

        with self._connect(grpc) as channel:
            yield channel

    def aio_channel(self) -> grpc.aio.Channel:
        """The same for asyncio; the caller closes it."""
        import grpc.aio

        channel: grpc.aio.Channel = self._connect(grpc.aio)
        return channel

    def _connect(self, library: Any) -> Any:
        import grpc

        from shared.rpc.channels import client_options

        if self.tls is None:
            return library.insecure_channel(self.address, client_options())
        authority, certificate, key = self.tls
        credentials = grpc.ssl_channel_credentials(authority, key, certificate)
        return library.secure_channel(self.address, credentials, client_options())


def open_session(
    address: Annotated[
        str,
        typer.Option(
            envvar="ML_ADDRESS",
            help="HOST, HOST:PORT or https://HOST:PORT of the stack.",
        ),
    ] = f"localhost:{PORT}",
    json: Annotated[
        bool, typer.Option("--json", help="Print JSON, one value a line; errors too, on stderr.")
    ] = False,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            envvar="ML_API_KEY_FILE",
            help="File with the caller's API key; or the variable ML_API_KEY is the key.",
        ),
    ] = None,
    tls: Annotated[bool, typer.Option("--tls", help="Use TLS, as https:// does.")] = False,
    ca: Annotated[
        Path | None,
        typer.Option(envvar="ML_CA", help="TLS: certificates of authorities (PEM)."),
    ] = None,
    cert: Annotated[
        Path | None,
        typer.Option(envvar="ML_CERT", help="Mutual TLS: the caller's certificate (PEM)."),
    ] = None,
    key: Annotated[
        Path | None, typer.Option(envvar="ML_KEY", help="Mutual TLS: its private key (PEM).")
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(min=0.001, max=1e9, help="Seconds that a call may take. [default: none]"),
    ] = None,
) -> Session:
    """The session of a command line.

    Raises:
        CliError: an option or a file is not valid.
    """
    if bool(cert) != bool(key):
        raise CliError("--cert and --key belong together: give both or none")
    try:
        url = urlsplit(address if "://" in address else f"//{address}")
        host, port = url.hostname, url.port
    except ValueError:
        url, host, port = urlsplit(""), None, None
    secure = tls or url.scheme == "https" or bool(ca or cert)
    if url.scheme not in ("", "http", "https") or not host or url.path.strip("/"):
        raise CliError(f"--address is {address!r}; it must be HOST, HOST:PORT or https://HOST:PORT")
    if url.scheme == "http" and secure:
        raise CliError(f"--address is {address!r}, and TLS needs https://")
    port = port or (MTLS_PORT if cert else TLS_PORT if secure else PORT)
    secret = read_key(api_key_file)
    return Session(
        address=f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        json=json,
        metadata=(("authorization", f"Bearer {secret}"),) if secret else (),
        tls=(_pem(ca), _pem(cert), _pem(key)) if secure else None,
        timeout=timeout,
    )


def read_key(file: Path | None) -> str:
    """The caller's API key, of a file or of ML_API_KEY; empty for none.

    It is no option: other users of the machine see command lines.

    Raises:
        CliError: the file cannot be read, or there is no key in it or in the variable.
    """
    if file is None:
        key = os.environ.get("ML_API_KEY", "").strip()
        if not key:
            return ""
    else:
        key = (_pem(file) or b"").decode(errors="replace").strip()
    if not key or not key.isascii() or not key.isprintable():
        place = file or "ML_API_KEY"
        raise CliError(f"there is no API key in {place}: it must be one line of ASCII")
    return key


def _pem(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise CliError(f"cannot read {path}: {error.strerror}") from None
