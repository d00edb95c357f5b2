"""Fetching assets: sources in their order, hashes, what is said when one fails."""

import fcntl
import threading
from pathlib import Path

import pytest

from tests.unit.models_tool.conftest import (
    CLOSED_PORT,
    CONTENT,
    Lines,
    asset,
    fetch,
    left_in,
    listed,
    pypi,
    sha256,
    wheel,
)


def test_a_second_run_needs_neither_site_nor_package(
    site: tuple[str, Path], tmp_path: Path, offline_pip: Path
) -> None:
    address, folder = site
    (folder / "model.tflite").write_bytes(CONTENT)
    data = wheel(offline_pip / "pictures-1.0-py3-none-any.whl", {"data/face.png": b"face"})
    entries = listed(
        asset("model.tflite", {"url": f"{address}/model.tflite"}),
        asset("face.png", {"package": "pictures", "member": "data/face.png"}, content=b"face"),
        packages={"pictures": pypi(data)},
    )
    root = tmp_path / "models"
    assert [outcome.state for outcome in fetch(root, entries)] == ["fetched", "fetched"]
    assert left_in(root) == [".cache/lock", "vision/face.png", "vision/model.tflite"]

    for path in (folder / "model.tflite", *offline_pip.iterdir()):
        path.unlink()
    lines = Lines()
    assert [outcome.state for outcome in fetch(root, entries, lines)] == ["present", "present"]
    assert [outcome.state for outcome in fetch(root, entries, offline=True)] == ["present"] * 2
    assert lines.said == []


@pytest.mark.parametrize("wrong", [CONTENT[:-1], b"", CONTENT + b"!"])
def test_what_does_not_match_is_named_and_not_kept(
    wrong: bytes, site: tuple[str, Path], tmp_path: Path
) -> None:
    address, folder = site
    (folder / "model.tflite").write_bytes(wrong)
    entries = listed(asset("model.tflite", {"url": f"{address}/model.tflite"}))
    (outcome,) = fetch(tmp_path / "models", entries)
    assert outcome.state == "missing"
    assert (
        f"model.tflite from {address}/model.tflite has SHA-256 {sha256(wrong)}" in outcome.message
    )
    assert f"the list says {sha256(CONTENT)}" in outcome.message
    assert left_in(tmp_path / "models") == [".cache/lock"]


def test_the_next_source_serves_when_one_gives_the_wrong_bytes(
    site: tuple[str, Path], tmp_path: Path
) -> None:
    address, folder = site
    (folder / "model.tflite").write_bytes(b"changed")
    good = tmp_path / "good.tflite"
    good.write_bytes(CONTENT)
    entries = listed(
        asset("model.tflite", {"url": f"{address}/model.tflite"}, {"local": str(good)})
    )
    lines = Lines()
    (outcome,) = fetch(tmp_path / "models", entries, lines)
    assert outcome.state == "fetched"
    assert (tmp_path / "models/vision/model.tflite").read_bytes() == CONTENT
    assert any("came from another source" in line for line in lines.said)


def test_a_publishers_better_file_serves_in_place_of_the_listed_one(
    site: tuple[str, Path], tmp_path: Path
) -> None:
    """The list has what a package gives; the address has another model for the same purpose."""
    address, folder = site
    better = b"better" * 1000
    content = {"size": len(better), "sha256": sha256(better)}
    listed_one = tmp_path / "listed.tflite"
    listed_one.write_bytes(CONTENT)
    entries = listed(
        asset(
            "model.tflite",
            {"url": f"{address}/model.tflite", "content": content},
            {"local": str(listed_one)},
        )
    )
    target = tmp_path / "models/vision/model.tflite"
    for served, kept in ((None, CONTENT), (b"changed", CONTENT), (better, better)):
        target.unlink(missing_ok=True)
        if served is not None:
            (folder / "model.tflite").write_bytes(served)
        assert [o.state for o in fetch(tmp_path / "models", entries)] == ["fetched"]
        assert target.read_bytes() == kept
        assert [o.state for o in fetch(tmp_path / "models", entries)] == ["present"]


def test_a_damaged_file_is_fetched_again(tmp_path: Path) -> None:
    good = tmp_path / "good.tflite"
    good.write_bytes(CONTENT)
    entries = listed(asset("model.tflite", {"local": str(good)}))
    target = tmp_path / "models/vision/model.tflite"
    target.parent.mkdir(parents=True)
    target.write_bytes(bytes(len(CONTENT)))
    (outcome,) = fetch(tmp_path / "models", entries)
    assert outcome.state == "fetched"
    assert target.read_bytes() == CONTENT


def test_a_missing_asset_says_what_was_tried_and_what_to_do(tmp_path: Path) -> None:
    entries = listed(
        asset("a.tflite", {"url": f"{CLOSED_PORT}/a"}, {"local": str(tmp_path / "a.tflite")}),
        asset("b.tflite", {"url": f"{CLOSED_PORT}/b"}),
    )
    lines = Lines()
    first, second = fetch(tmp_path / "models", entries, lines)
    assert first.state == second.state == "missing"
    assert first.message == (
        f"a.tflite is missing: 127.0.0.1:9 does not answer; there is no file {tmp_path}/a.tflite. "
        "Run again with a network, or put the missing file into the models folder."
    )
    assert sum("does not answer" in line for line in lines.said) == 1, "it is asked once a run"


def test_an_optional_asset_is_off_when_unreachable_but_an_error_when_wrong(tmp_path: Path) -> None:
    local = tmp_path / "hair.tflite"
    entries = listed(asset("hair.tflite", {"local": str(local)}, without="Hair is off"))
    (outcome,) = fetch(tmp_path / "models", entries)
    assert outcome.state == "off"
    assert outcome.message.startswith("Hair is off: hair.tflite is missing: there is no file")
    local.write_bytes(b"not hair")
    (outcome,) = fetch(tmp_path / "models", entries)
    assert outcome.state == "missing"


def test_what_an_asset_is_built_of_is_missing_in_its_own_words(tmp_path: Path) -> None:
    entries = listed(
        asset("part", {"url": f"{CLOSED_PORT}/part"}, kind="input", folder=".cache/inputs"),
        asset("whole", {"build": "bundles.hair_segmenter", "inputs": ["part"]}),
    )
    (outcome,) = fetch(tmp_path / "models", entries)
    assert outcome.message.startswith("whole is missing: part is missing: 127.0.0.1:9 does not")


@pytest.mark.parametrize(
    "place", ["mine/vision/model.tflite", "mine/model.tflite", "models/model.tflite"]
)
def test_a_local_folder_is_the_last_resort(place: str, tmp_path: Path) -> None:
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).write_bytes(CONTENT)
    entries = listed(asset("model.tflite", {"url": f"{CLOSED_PORT}/model.tflite"}))
    (outcome,) = fetch(tmp_path / "models", entries, local_folders=[tmp_path / "mine"])
    assert outcome.state == "fetched"


def test_a_package_with_another_hash_is_refused(tmp_path: Path, offline_pip: Path) -> None:
    data = wheel(offline_pip / "pictures-1.0-py3-none-any.whl", {"face.png": CONTENT})
    entries = listed(
        asset("model.tflite", {"package": "pictures", "member": "face.png"}),
        packages={"pictures": pypi(data + b"!")},
    )
    (outcome,) = fetch(tmp_path / "models", entries)
    assert f"has SHA-256 {sha256(data)}" in outcome.message
    assert left_in(tmp_path / "models") == [".cache/lock"]


def test_missing_package_managers_are_named(
    tmp_path: Path, offline_pip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    entries = listed(
        asset("pose", {"package": "@m/pose", "member": "m"}),
        asset("face", {"package": "pictures", "member": "m"}),
        packages={"@m/pose": pypi(b"") | {"registry": "npm"}, "pictures": pypi(b"")},
    )
    pose, face = fetch(tmp_path / "models", entries)
    assert "npm, which would download @m/pose, is not installed" in pose.message
    assert "pip could not download pictures (ERROR: No matching distribution" in face.message


def test_two_runs_do_not_fill_one_folder_at_once(tmp_path: Path) -> None:
    good = tmp_path / "good.tflite"
    good.write_bytes(CONTENT)
    entries = listed(asset("model.tflite", {"local": str(good)}))
    root, waiting, outcomes = tmp_path / "models", threading.Event(), []

    class Watch(Lines):
        def line(self, text: str) -> None:
            if "waiting" in text:
                waiting.set()

    (root / ".cache").mkdir(parents=True)
    with (root / ".cache/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run = threading.Thread(target=lambda: outcomes.extend(fetch(root, entries, Watch())))
        run.start()
        assert waiting.wait(60)
        assert not (root / "vision").exists()
    run.join(60)
    assert [outcome.state for outcome in outcomes] == ["fetched"]


def test_a_folder_of_somebody_else_does_without_what_is_optional(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = tmp_path / "good.tflite"
    good.write_bytes(CONTENT)
    here = asset("here.tflite", {"local": str(good)})
    gone = asset("gone.tflite", {"local": str(tmp_path / "gone")})
    root = tmp_path / "models"
    assert [outcome.state for outcome in fetch(root, listed(here))] == ["fetched"]
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    monkeypatch.setattr("tools.models.fetch.Fetcher._obtain", pytest.fail)
    outcomes = fetch(root, listed(here, gone | {"without": "nothing else"}))
    assert [outcome.state for outcome in outcomes] == ["present", "off"]
    assert "cannot be written here" in outcomes[1].message
