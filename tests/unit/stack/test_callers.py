"""The files of who may call, and what Envoy gets to read of them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from stack import callers, envoy_config
from stack.callers import CallerFiles, CallersError
from stack.envoy import find_binary
from stack.ports import Ports
from tests.support.own_envoy import ENTRY_POINT
from tools.dev_certs import make_certificates

ALICE, BOB = "a" * 16, "b._~+/=-" * 4
KEYS = f"# who\n\nalice {ALICE}\n  bob\t{BOB}  \nalice c{ALICE}\n"
NAMES = "ml-client\n# more\nspiffe://example/app\nCN=app,O=Example Ltd\n"


def credentials(config: dict[str, Any]) -> list[dict[str, str]]:
    found: list[dict[str, str]] = config["resources"][0]["typed_config"]["credentials"]
    return found


def test_a_line_is_a_name_and_a_key() -> None:
    assert credentials(callers.api_keys(KEYS)) == [
        {"client": "alice", "key": ALICE},
        {"client": "bob", "key": BOB},
        {"client": "alice", "key": f"c{ALICE}"},
    ]


@pytest.mark.parametrize(
    "line",
    [
        "alice",
        "alice short",
        f"alice {ALICE} more",
        f"127.0.0.1 {ALICE}",  # nobody may have the name of an address
        f"{'n' * 65} {ALICE}",
        f"alice {'k' * 257}",
        f"alice {ALICE}ß",
        f'alice {ALICE}"',
    ],
)
def test_a_line_that_is_not_valid_is_told_by_its_number_alone(line: str) -> None:
    with pytest.raises(CallersError, match="line 3 must be a name") as told:
        callers.api_keys(f"# keys\n\n{line}\n")
    assert ALICE not in str(told.value)


def test_a_key_that_is_there_twice_is_refused() -> None:
    with pytest.raises(CallersError, match="line 2 has the key of another line"):
        callers.api_keys(f"alice {ALICE}\nbob {ALICE}")


def test_a_plain_name_is_that_of_the_certificate_or_its_cn() -> None:
    config = callers.client_names(NAMES)["resources"][0]["typed_config"]
    principals = config["rules"]["policies"]["allowed"]["principals"]
    assert [one["authenticated"]["principal_name"]["exact"] for one in principals[:-1]] == [
        "ml-client",
        "CN=ml-client",
        "spiffe://example/app",
        "CN=app,O=Example Ltd",
    ]
    assert principals[-1] == {"not_id": {"any": True}}


@pytest.mark.parametrize("line", ['say "hi"', "back\\slash", "naïve", "tab\tinside"])
def test_a_name_that_is_not_valid_is_refused(line: str) -> None:
    with pytest.raises(CallersError, match="line 1"):
        callers.client_names(line)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "api_keys.txt").write_text(KEYS)
    (folder / "client_names.txt").write_text(NAMES)
    return folder


def test_files_are_written_anew_when_they_change(tmp_path: Path, sources: Path) -> None:
    files = CallerFiles(tmp_path / "run", sources, list(callers.KINDS))
    files.write()
    target = tmp_path / "run" / "api_keys.json"
    assert target.stat().st_mode & 0o077 == 0
    assert files.refresh() == []
    source = sources / "api_keys.txt"
    source.write_text(f"carol {ALICE}\n")
    assert files.refresh() == [f"{source} has changed, and is in force"]
    assert credentials(json.loads(target.read_text())) == [{"client": "carol", "key": ALICE}]


def test_a_file_that_is_not_valid_or_gone_changes_nothing(tmp_path: Path, sources: Path) -> None:
    files = CallerFiles(tmp_path / "run", sources, ["api_keys"])
    files.write()
    target = tmp_path / "run" / "api_keys.json"
    before = target.read_text()
    source = sources / "api_keys.txt"
    source.write_text("nonsense\n")
    (said,) = files.refresh()
    assert "line 1 must be" in said
    assert said.endswith("what it was stays in force")
    assert files.refresh() == []  # told once
    source.unlink()
    (said,) = files.refresh()
    assert "cannot read" in said
    assert target.read_text() == before


def test_checks_and_the_wait_for_a_service_go_together(sources: Path) -> None:
    options = envoy_config.EnvoyOptions(callers=sources, wait_seconds=2)
    config = json.dumps(envoy_config.native_config(Ports(), options))
    assert "the call has no API key" in config
    assert "the request was not complete within 17 s" in config


def test_without_a_file_there_is_no_check(tmp_path: Path) -> None:
    assert callers.kinds_in(tmp_path) == []
    assert callers.kinds_in(None) == []
    (tmp_path / "api_keys.txt").touch()
    options = envoy_config.EnvoyOptions(callers=tmp_path)
    assert options.caller_kinds == ["api_keys"]


@pytest.fixture
def in_container(tmp_path: Path, sources: Path) -> Any:
    """Runs the container's entry point, with `true` as its Envoy."""
    image = tmp_path / "image"
    envoy_config.write_container_configs(image)
    tls = tmp_path / "tls"
    tls.mkdir()
    make_certificates(tls)

    def run(**environment: str) -> subprocess.CompletedProcess[str]:
        settings = {
            "PATH": "/usr/bin:/bin",
            "ENVOY": "true",
            "CONFIG_DIR": str(image),
            "RUN_DIR": str(tmp_path / "container"),
            "CALLERS_DIR": str(sources),
            "TLS_DIR": str(tls),
        }
        (tmp_path / "container").mkdir(exist_ok=True)
        return subprocess.run(
            [ENTRY_POINT], env=settings | environment, capture_output=True, text=True, check=False
        )

    return run


def test_the_container_writes_the_same(tmp_path: Path, sources: Path, in_container: Any) -> None:
    done = in_container()
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")
    for kind, configuration in callers.KINDS.items():
        written = json.loads((tmp_path / "container" / "callers" / f"{kind}.json").read_text())
        assert written == configuration((sources / f"{kind}.txt").read_text())
    config = (tmp_path / "container" / "envoy.yaml").read_text()
    for kind in callers.KINDS:
        assert str(tmp_path / "container" / "callers" / f"{kind}.json") in config
    checked = subprocess.run(
        [find_binary(), "--mode", "validate", "-c", tmp_path / "container" / "envoy.yaml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("api_keys", "alice short"),
        ("api_keys", f"1 {ALICE}"),
        ("api_keys", f'alice {ALICE}"'),
        ("api_keys", f"alice {ALICE}\nbob {ALICE}"),
        ("client_names", 'say "hi"'),
        ("client_names", "back\\slash"),
        ("client_names", "naïve"),
        ("client_names", "tab\tinside"),
    ],
)
def test_the_container_refuses_the_same(
    sources: Path, in_container: Any, kind: str, line: str
) -> None:
    (sources / f"{kind}.txt").write_text(f"{line}\n")
    with pytest.raises(CallersError) as told:
        callers.KINDS[kind](line)
    done = in_container()
    assert done.returncode == 1
    (said,) = done.stdout.splitlines()
    assert json.loads(said)["message"] == f"{kind}.txt: {told.value}"


@pytest.mark.parametrize(
    ("address", "keys", "warns"),
    [("127.0.0.1", False, False), ("0.0.0.0", False, True), ("0.0.0.0", True, False)],
)
def test_the_container_warns_of_open_ports(
    sources: Path, in_container: Any, address: str, keys: bool, warns: bool
) -> None:
    if not keys:
        (sources / "api_keys.txt").unlink()
    said = in_container(ML_ADDRESS=address).stdout
    assert ("without API keys" in said) is warns
