"""Makes certificates for tries and tests: `python -m tools.dev_certs DIR`.

`ca.pem` is the authority; `server.pem` is for localhost, 127.0.0.1 and the names of the compose
file, `client.pem` for a client of the mTLS port. Keys are beside them, readable by all, since the
user of a container is another; the authority's is not kept. Not for production.
"""

from __future__ import annotations

import datetime
import ipaddress
import sys
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAYS = 90
SERVER_NAMES = ("localhost", "envoy", "envoy-tls")


def make_certificates(folder: Path) -> None:
    """Writes `ca.pem`, and `server` and `client` as .pem and .key, over older ones."""
    folder.mkdir(parents=True, exist_ok=True)
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = _sign("ML services test authority", authority_key, None, authority_key)
    _write_certificate(folder / "ca.pem", authority)
    for name in ("server", "client"):
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _sign(f"ml-{name}", key, authority, authority_key)
        _write_certificate(folder / f"{name}.pem", certificate)
        _write_key(folder / f"{name}.key", key)


def _sign(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    authority: x509.Certificate | None,
    authority_key: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    """A certificate of `name`; without an authority its own."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(authority.subject if authority else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))  # clocks differ
        .not_valid_after(now + datetime.timedelta(days=DAYS))
        .add_extension(x509.BasicConstraints(ca=authority is None, path_length=None), critical=True)
    )
    if authority:
        names = [
            *map(x509.DNSName, SERVER_NAMES),
            x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        ]
        uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    return builder.sign(authority_key, hashes.SHA256())


def _write_certificate(path: Path, certificate: x509.Certificate) -> None:
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    path.chmod(0o644)


if __name__ == "__main__":
    make_certificates(Path(sys.argv[1]))
