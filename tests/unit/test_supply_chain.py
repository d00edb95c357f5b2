"""What is installed is pinned by hash, and the tools that renew and check the pins."""

from __future__ import annotations

import re

import pytest
import yaml

from tools import audit, lock
from tools.containers import pin_images, sbom

HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")
DIGEST = "sha256:" + "5" * 64
# Their registries were never asked: `make pin-images` fills them in.
WITHOUT_DIGEST = {"envoyproxy/envoy", "prom/prometheus"}


@pytest.mark.parametrize("path", sorted((lock.ROOT / "requirements").glob("*.txt")), ids=str)
def test_every_pin_has_a_hash(path) -> None:
    entries = re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE)
    entries = entries.replace("\\\n", " ").splitlines()
    assert entries
    for entry in entries:
        assert HASH.search(entry), f"{path.name}: {entry[:80]}"


@pytest.mark.parametrize("name", ["torch", "torch-cuda"])
def test_torch_is_of_the_version_that_the_project_asks_for(name: str) -> None:
    pins = re.findall(
        r"^torch==([\d.]+)", (lock.ROOT / "requirements" / f"{name}.txt").read_text(), re.MULTILINE
    )
    assert set(pins) == {lock.torch_version()}


def test_torch_of_cuda_shares_the_versions_of_the_service() -> None:
    def pins(name: str) -> dict[str, str]:
        text = (lock.ROOT / "requirements" / f"{name}.txt").read_text()
        return dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))

    text, cuda = pins("text"), pins("torch-cuda")
    assert {name: text[name] for name in text.keys() & cuda} == {
        name: cuda[name] for name in text.keys() & cuda
    }


def test_an_index_without_answer_leaves_the_hashes_of_torch(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    path = lock.ROOT / "requirements" / "torch.txt"
    before = path.read_text()
    nowhere = "http://127.0.0.1:9/"
    assert not lock.lock_torch(lock.torch_version(), tmp_path, nowhere)
    with pytest.raises(SystemExit, match=r"cannot be made for torch 1\.0\.0"):
        lock.lock_torch("1.0.0", tmp_path, nowhere)
    assert path.read_text() == before


def test_base_images_have_digests() -> None:
    references = {
        found["tagged"].rpartition(":")[0]: found[0]
        for path in pin_images.FILES
        for found in pin_images.REFERENCE.finditer(path.read_text())
    }
    assert {name for name, text in references.items() if "@sha256:" not in text} <= WITHOUT_DIGEST
    assert {"python", "envoyproxy/envoy", "prom/prometheus", "grafana/grafana"} == set(references)


def test_no_other_image_is_named() -> None:
    dockerfile, compose = (path.read_text() for path in pin_images.FILES)
    stages = set(re.findall(r"^FROM \S+ AS (\S+)", dockerfile, re.MULTILINE))
    sources = set(re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE))
    assert sources - stages == {"${PYTHON_IMAGE}", "${ENVOY_IMAGE}"}
    images = {service["image"] for service in yaml.safe_load(compose)["services"].values()}
    assert all(each.startswith(("ml-services/", "${PROM", "${GRAF")) for each in images)


def test_a_digest_replaces_the_old_one_and_what_is_unknown_stays() -> None:
    old = f"base:5000/python:3.11@sha256:{'0' * 64}"
    text = f"ARG PYTHON_IMAGE={old}\nimage: ${{ENVOY_IMAGE:-envoy/envoy:v1}}\nARG X_IMAGE=x:1\n"

    def ask(tagged: str) -> str:
        if tagged == "x:1":
            raise pin_images.UnknownDigestError("no such host")
        return DIGEST

    said: list[str] = []
    assert pin_images.pinned(text, ask, said.append) == (
        (
            f"ARG PYTHON_IMAGE=base:5000/python:3.11@{DIGEST}\n"
            f"image: ${{ENVOY_IMAGE:-envoy/envoy:v1@{DIGEST}}}\nARG X_IMAGE=x:1\n"
        ),
        False,
    )
    assert said[-1] == "x:1: stays as it is: no such host"


@pytest.mark.parametrize("name", ["text", "native"])
def test_bills_of_materials_have_torch_with_its_hashes(name: str) -> None:
    (torch,) = (each for each in sbom.requirements(name).splitlines() if each.startswith("torch=="))
    assert HASH.search(torch)


def test_every_version_is_audited() -> None:
    pins = audit.pins()
    assert pins["torch"] == [lock.torch_version()]
    files = list(audit.rounds({"a": ["1", "2"], "b": ["3"]}))
    assert files == ["a==1\nb==3\n", "a==2\n"]
    asked = "".join(audit.rounds(pins)).splitlines()
    assert len(asked) == sum(map(len, pins.values()))


def test_a_package_that_was_not_looked_up_is_no_good_news() -> None:
    findings = audit.read(
        [
            {"name": "a", "version": "1", "vulns": []},
            {"name": "b", "version": "2", "vulns": [{"id": "CVE-1"}, {"id": "CVE-2"}]},
            {"name": "c", "skip_reason": "not found"},
        ]
    )
    assert findings == audit.Findings(["b 2: CVE-1, CVE-2"], ["c: not found"], 2)
