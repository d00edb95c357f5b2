"""Makes certificates for development and tests: `python -m tools.dev_certs DIR`; needs OpenSSL 3.

`ca.pem` is the authority; `server.pem` is for localhost, 127.0.0.1 and the names of the compose
file, `client.pem` for a client of the mTLS port. Keys are beside them, readable by all, since the
user of a container is another; the authority's is not kept. Not for production.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

DAYS = 90
_EXTENSIONS = """
[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[server]
subjectAltName = DNS:localhost, DNS:envoy, DNS:envoy-tls, IP:127.0.0.1
extendedKeyUsage = serverAuth
basicConstraints = critical, CA:FALSE
authorityKeyIdentifier = keyid
[client]
subjectAltName = DNS:ml-client
extendedKeyUsage = clientAuth
basicConstraints = critical, CA:FALSE
authorityKeyIdentifier = keyid
"""


def make_certificates(folder: Path) -> None:
    """Writes `ca.pem`, and `server` and `client` as .pem and .key, replacing older ones.

    Raises:
        SystemExit: OpenSSL 3 is missing or has failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        extensions, authority_key = Path(temporary, "openssl.cnf"), Path(temporary, "ca.key")
        extensions.write_text(_EXTENSIONS)
        authority = folder / "ca.pem"
        common = ("-config", extensions, "-days", str(DAYS))
        name = "/CN=ML services test authority"
        _request(authority, authority_key, name, *common, "-extensions", "authority")
        for name in ("server", "client"):
            signer = ("-CA", authority, "-CAkey", authority_key, "-extensions", name)
            key = folder / f"{name}.key"
            _request(folder / f"{name}.pem", key, f"/CN=ml-{name}", *common, *signer)
            key.chmod(0o644)


def _request(certificate: Path, key: Path, name: str, *options: str | Path) -> None:
    kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    command = ("openssl", "req", "-x509", *kind, "-subj", name, *options)
    try:
        done = subprocess.run(
            [*command, "-keyout", key, "-out", certificate],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        sys.exit("openssl is not installed")
    if done.returncode:
        sys.exit(f"openssl made no certificate:\n{done.stderr}")


if __name__ == "__main__":
    make_certificates(Path(sys.argv[1]))
