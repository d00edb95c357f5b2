"""Fixtures of the tests of Envoy."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.stack import Stack, stack_in
from tools.dev_certs import make_certificates


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority of its own, a certificate of the server and one of a client."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    make_certificates(folder)
    return folder


@pytest.fixture(scope="session")
def front(
    models: Path, certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """A stack with all listeners."""
    with stack_in(tmp_path_factory.mktemp("front"), "--tls", str(certificates)) as running:
        running.wait_serving()
        yield running
