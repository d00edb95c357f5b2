"""The list of assets, and the command line over it."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from shared.pipelines import find_pipeline
from tests.unit.models_tool.conftest import asset, listed
from tools.models import REPOSITORY, manifest, model_dir
from tools.models.__main__ import main
from tools.models.manifest import Asset, BuildSource


def test_every_listed_asset_has_a_source_and_every_build_step_exists() -> None:
    entries = manifest.load()
    steps = {s.build for a in entries.assets for s in a.sources if isinstance(s, BuildSource)}
    for step in steps:
        module, _, function = step.partition(".")
        assert callable(getattr(import_module(f"tools.models.{module}"), function)), step
    used = {s.package for a in entries.assets for s in a.sources if hasattr(s, "package")}
    assert used == set(entries.packages)
    inputs = {i for a in entries.assets for s in a.sources for i in getattr(s, "inputs", ())}
    assert {a.name for a in entries.assets if a.kind == "input"} <= inputs


def test_every_asset_can_be_had_without_the_publishers_site() -> None:
    for entry in manifest.load().assets:
        assert any(not hasattr(source, "url") for source in entry.sources), entry.name


def test_every_text_model_says_what_it_is_for_and_under_which_licence() -> None:
    for entry in manifest.load().select([], "text"):
        assert find_pipeline(entry.pipeline).name == entry.pipeline
        assert entry.licence, entry.name


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        (asset("a", {"package": "none", "member": "m"}), "no package 'none'"),
        (asset("a", {"build": "bundles.x", "inputs": ["a"]}), "listed before"),
        (asset("a"), "at least 1"),
        (asset("a", {"url": "u"}, folder="../b"), "leaves the models folder"),
        (asset("a", {"url": "u"}, files=[]), "at least 1"),
        (asset("a", {"url": "u", "member": "m"}), "Extra inputs"),
    ],
)
def test_a_wrong_list_is_refused(entry: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        listed(entry)


def test_the_models_folder_is_the_repositorys_unless_it_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MODEL_DIR", raising=False)
    assert model_dir() == REPOSITORY / "models"
    monkeypatch.setenv("MODEL_DIR", str(tmp_path))
    assert model_dir() == tmp_path


def test_selection_by_kind() -> None:
    entries = manifest.load()
    pictures = entries.select([], "pictures")
    assert {entry.kind for entry in pictures} == {"pictures"}
    assert all(isinstance(entry, Asset) for entry in entries.select(["hair_segmenter"], None))
    with pytest.raises(KeyError):
        entries.select(["hair_segmentation.tflite"], None)  # an input is not fetched by itself


def test_the_command_line_fails_with_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_DIR", str(tmp_path))
    assert main(["fetch", "astronaut", "--offline"]) == 1
    said = capsys.readouterr()
    assert "astronaut is missing: scikit-image 0.26.0 from pypi was not asked for" in said.err
    assert "0 assets fetched, 0 were there, 1 missing" in said.out
    assert main(["fetch", "nothing"]) == 2
    assert "There is no asset 'nothing'. The assets are: SmolLM2" in capsys.readouterr().err
    assert main(["fetch", "astronaut", "--only", "text"]) == 2
    capsys.readouterr()
    assert main(["list"]) == 0
    table = capsys.readouterr().out
    for entry in manifest.load().select([], None):
        assert entry.name in table
