"""The model fetching tool: its list, its sources, and what it does when one fails."""

import fcntl
import hashlib
import io
import struct
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mediapipe.tasks.metadata import metadata_schema_py_generated as schema
from mediapipe.tasks.metadata import schema_py_generated as tflite_schema
from pydantic import ValidationError

from tools.models import REPOSITORY, bundles, manifest, metadata, model_dir, smollm2, whisper
from tools.models.__main__ import main
from tools.models.fetch import Fetcher, Outcome
from tools.models.files import SourceError, extract
from tools.models.manifest import Asset, BuildSource, Manifest
from tools.models.progress import PlainReporter

CONTENT = b"weights" * 1000
CLOSED_PORT = "http://127.0.0.1:9"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def asset(
    name: str = "model.tflite", *sources: dict[str, Any], content: bytes = CONTENT, **more: Any
) -> dict[str, Any]:
    file = {"path": name, "size": len(content), "sha256": sha256(content)}
    entry = {"name": name, "kind": "vision", "folder": "vision", "files": [file]}
    return entry | {"sources": list(sources)} | more


def listed(*assets: dict[str, Any], packages: dict[str, Any] | None = None) -> Manifest:
    return Manifest.model_validate({"packages": packages or {}, "assets": assets})


class Lines(PlainReporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def line(self, text: str) -> None:
        self.said.append(text)


def fetch(
    root: Path, entries: Manifest, lines: Lines | None = None, **options: Any
) -> list[Outcome]:
    with Fetcher(entries, root, lines or Lines(), **options) as fetcher:
        return fetcher.fetch(entries.select([], None))


def left_in(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web server on this machine and the folder that it serves."""
    folder = tmp_path / "site"
    folder.mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()
        thread.join()


@pytest.fixture
def offline_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that is the only place where pip looks."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return wheels


def wheel(path: Path, members: dict[str, bytes]) -> bytes:
    name, version = path.name.split("-")[:2]
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path.read_bytes()


def pypi(data: bytes) -> dict[str, Any]:
    return {"registry": "pypi", "version": "1.0", "size": len(data), "sha256": sha256(data)}


# The list


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


# Fetching


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
        assert waiting.wait(30)
        assert not (root / "vision").exists()
    run.join(30)
    assert [outcome.state for outcome in outcomes] == ["fetched"]


# Archives, bundles and metadata


def test_extract_reads_a_member_inside_archives(tmp_path: Path) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("deep.tflite", CONTENT)
    with zipfile.ZipFile(tmp_path / "a.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("lib/ops.task", inner.getvalue())
    extract(tmp_path / "a.whl", "lib/ops.task!deep.tflite", tmp_path / "out/deep.tflite")
    assert (tmp_path / "out/deep.tflite").read_bytes() == CONTENT

    with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
        tar.add(tmp_path / "out/deep.tflite", "package/deep.tflite")
    extract(tmp_path / "a.tgz", "package/deep.tflite", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == CONTENT

    for name in ("a.whl", "a.tgz"):
        with pytest.raises(SourceError, match=rf"{name} has no gone"):
            extract(tmp_path / name, "gone", tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_bundle_members_come_back_stored_and_aligned(tmp_path: Path) -> None:
    members = {"a.tflite": b"x" * 5, "longer_name.tflite": b"y" * 333, "b": b"", "c": b"z" * 16}
    path = tmp_path / "bundle.task"
    bundles.write_bundle(path, members)
    assert bundles.read_bundle(path) == members
    raw = path.read_bytes()
    with zipfile.ZipFile(path) as bundle:
        for info in bundle.infolist():
            start = info.header_offset + bundles.LOCAL_HEADER + len(info.filename)
            assert start % bundles.ALIGNMENT == 0
            assert info.compress_type == zipfile.ZIP_STORED
            assert raw[start : start + info.file_size] == members[info.filename]


@pytest.fixture
def tflite_model() -> bytes:
    path = model_dir() / "vision/selfie_segmenter_landscape.tflite"
    if not path.is_file():
        pytest.skip("the models are not here: python -m tools.models fetch")
    return path.read_bytes()


def embedded(model: bytes) -> Any:
    """The one metadata table of a model."""
    tree = tflite_schema.ModelT.InitFromObj(tflite_schema.Model.GetRootAsModel(model, 0))
    (entry,) = [entry for entry in tree.metadata if entry.name == b"TFLITE_METADATA"]
    buffer = bytes(bytearray(tree.buffers[entry.buffer].data))
    return schema.ModelMetadataT.InitFromObj(schema.ModelMetadata.GetRootAs(buffer, 0))


def test_metadata_says_how_pixels_are_scaled_and_replaces_what_was_there(
    tflite_model: bytes,
) -> None:
    once = metadata.image_model(tflite_model, "first")
    model = embedded(metadata.image_model(once, "second"))
    assert model.name == b"second"
    (graph,) = model.subgraphMetadata
    (image,) = graph.inputTensorMetadata
    (unit,) = image.processUnits
    assert (list(unit.options.mean), list(unit.options.std)) == ([0.0], [255.0])
    assert len(graph.outputTensorMetadata) == 1


def test_labels_lie_in_a_zip_behind_the_model(tflite_model: bytes) -> None:
    labelled = metadata.segmenter_model(tflite_model, "Hair", ["background", "hair"])
    (graph,) = embedded(labelled).subgraphMetadata
    assert graph.customMetadata[0].name == b"SEGMENTER_METADATA"
    (file,) = graph.outputTensorMetadata[-1].associatedFiles
    with zipfile.ZipFile(io.BytesIO(labelled)) as archive:
        assert archive.read(file.name.decode()) == b"background\nhair\n"


# Conversions


def test_rotary_order_is_the_inverse_of_llama_cpps() -> None:
    heads, size, columns = 3, 8, 5
    weight = np.random.default_rng(0).normal(size=(heads * size, columns)).astype(np.float32)
    # LlamaModel.permute of llama.cpp's convert_hf_to_gguf.py
    permuted = weight.reshape(heads, 2, size // 2, columns).swapaxes(1, 2).reshape(weight.shape)
    assert not np.array_equal(permuted, weight)
    np.testing.assert_array_equal(smollm2.undo_rotary_order(permuted, heads), weight)


def test_the_tokenizer_check_fails_for_a_tokenizer_of_another_vocabulary(tmp_path: Path) -> None:
    fields = {
        "tokenizer.ggml.tokens": ["<|endoftext|>", *map(chr, range(33, 127)), "Ġ", "Ċ"],
        "tokenizer.ggml.token_type": [3] + [1] * 96,
        "tokenizer.ggml.merges": [],
    }
    smollm2.build_tokenizer(fields).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="does not give back"):
        smollm2.check_tokenizer(tmp_path / "tokenizer.json")


def model_bin(variables: dict[str, np.ndarray], spec: bytes = b"WhisperSpec") -> bytes:
    def text(value: bytes) -> bytes:
        return struct.pack("<H", len(value) + 1) + value + b"\0"

    data = struct.pack("<I", 6) + text(spec) + struct.pack("<II", 3, len(variables))
    for name, array in variables.items():
        data += text(name.encode()) + struct.pack("<B", array.ndim)
        data += struct.pack(f"<{array.ndim}I", *array.shape) + struct.pack("<B", 4)
        data += struct.pack("<I", array.nbytes) + array.tobytes()
    return data


def test_whispers_variables_are_read_and_its_fused_projections_split() -> None:
    fused = np.arange(24, dtype=np.float16).reshape(6, 4)
    bias = np.arange(6, dtype=np.float16)
    scale = np.ones(4, np.float16)
    place = "decoder/layer_1/self_attention"
    variables = {
        f"{place}/linear_0/weight": fused,
        f"{place}/linear_0/bias": bias,
        f"{place}/layer_norm/gamma": scale,
        "decoder/num_heads": np.ones((), np.float16),
    }
    read = whisper.read_variables(model_bin(variables))
    assert list(read) == list(variables)
    tensors = dict(whisper.rename(read))
    layer = "model.decoder.layers.1"
    assert set(tensors) == {
        *(f"{layer}.self_attn.{part}_proj.weight" for part in "qkv"),
        *(f"{layer}.self_attn.{part}_proj.bias" for part in "qv"),
        f"{layer}.self_attn_layer_norm.weight",
    }
    np.testing.assert_array_equal(tensors[f"{layer}.self_attn.v_proj.weight"], fused[4:])
    np.testing.assert_array_equal(tensors[f"{layer}.self_attn.v_proj.bias"], bias[4:])
    assert all(tensor.dtype == np.float32 for tensor in tensors.values())
    with pytest.raises(ValueError, match="this is MarianSpec"):
        whisper.read_variables(model_bin({}, b"MarianSpec"))
    with pytest.raises(KeyError):
        list(whisper.rename({"decoder/layer_0/unknown/weight": fused}))


# The command line


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


def test_selection_by_kind() -> None:
    entries = manifest.load()
    pictures = entries.select([], "pictures")
    assert {entry.kind for entry in pictures} == {"pictures"}
    assert all(isinstance(entry, Asset) for entry in entries.select(["hair_segmenter"], None))
    with pytest.raises(KeyError):
        entries.select(["hair_segmentation.tflite"], None)  # an input is not fetched by itself
