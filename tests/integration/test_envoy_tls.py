"""The TLS and mTLS ports: which clients they serve and which they refuse."""

from __future__ import annotations

import http.client
import ssl
import subprocess
import sys
import warnings
from pathlib import Path

import grpc
import pytest

from tests.support.stack import ROOT, Stack, list_models
from tools.dev_certs import make_certificates


def secure_channel(front: Stack, name: str, folder: Path, *, client: str = "") -> grpc.Channel:
    """A channel that trusts the authority of `folder`, and shows `client`'s certificate."""
    files = {"root_certificates": (folder / "ca.pem").read_bytes()}
    if client:
        files["private_key"] = (folder / f"{client}.key").read_bytes()
        files["certificate_chain"] = (folder / f"{client}.pem").read_bytes()
    # A pool shared with other tests would share their connections too.
    pool = [("grpc.use_local_subchannel_pool", 1)]
    address = front.addresses[name].replace("127.0.0.1", "localhost")
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(**files), pool)


def test_tls_serves_who_trusts_it(front: Stack, certificates: Path) -> None:
    with secure_channel(front, "envoy_tls", certificates) as channel:
        assert list_models(channel) is grpc.StatusCode.OK


def test_mtls_serves_a_client_with_a_certificate(front: Stack, certificates: Path) -> None:
    with secure_channel(front, "envoy_mtls", certificates, client="client") as channel:
        assert list_models(channel) is grpc.StatusCode.OK


def test_mtls_refuses_a_client_without_a_certificate(front: Stack, certificates: Path) -> None:
    with secure_channel(front, "envoy_mtls", certificates) as channel:
        assert list_models(channel) is grpc.StatusCode.UNAVAILABLE
    context = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    host, port = front.addresses["envoy_mtls"].split(":")
    connection = http.client.HTTPSConnection(host, int(port), context=context, timeout=30)
    # TLS 1.3 tells the client after its handshake; the alert may be lost to the close behind it.
    with pytest.raises((ssl.SSLError, ConnectionError), match=r"(?i)certificate|reset|EOF"):
        connection.request("GET", "/")
        connection.getresponse()
    connection.close()


def test_mtls_refuses_a_certificate_of_another_authority(
    front: Stack, certificates: Path, tmp_path: Path
) -> None:
    make_certificates(tmp_path)
    (tmp_path / "ca.pem").write_bytes((certificates / "ca.pem").read_bytes())
    with secure_channel(front, "envoy_mtls", tmp_path, client="client") as channel:
        assert list_models(channel) is grpc.StatusCode.UNAVAILABLE


def test_ml_on_the_command_line(front: Stack, certificates: Path) -> None:
    def models(name: str, *options: str) -> int:
        address = front.addresses[name].replace("127.0.0.1", "https://localhost")
        command = [sys.executable, "-m", "cli", "models", "--address", address, *options]
        return subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode

    trust = ("--ca", str(certificates / "ca.pem"))
    own = ("--cert", str(certificates / "client.pem"), "--key", str(certificates / "client.key"))
    assert models("envoy_tls", *trust) == 0
    assert models("envoy_mtls", *trust, *own) == 0
    assert models("envoy_mtls", *trust) == 24
    assert models("envoy_tls") == 24  # its authority is none of the system's


@pytest.mark.parametrize("name", ["envoy_tls", "envoy_mtls"])
def test_plain_text_is_refused_on_the_tls_ports(front: Stack, name: str) -> None:
    with front.channel(name) as channel:
        assert list_models(channel) is grpc.StatusCode.UNAVAILABLE


def test_old_tls_is_refused(front: Stack, certificates: Path) -> None:
    context = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings(action="ignore"):  # Python does not like them either
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    host, port = front.addresses["envoy_tls"].split(":")
    connection = http.client.HTTPSConnection(host, int(port), context=context, timeout=30)
    with pytest.raises(ssl.SSLError):
        connection.connect()
