"""Model ids and file paths: what is accepted, what is refused, and that nothing leaves its root."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import (
    InvalidArgumentError,
    InvalidModelIdError,
    InvalidPathError,
    MissingFieldError,
)
from shared.model_ids import (
    MAX_ID_PART_CHARS,
    MAX_PATH_CHARS,
    ModelId,
    at_revision,
    check_file_path,
    check_revision,
    folder_name,
    parse_model_id,
    resolve_inside,
    split_revision,
    with_file,
)

ID_PART = st.from_regex(r"\A[A-Za-z0-9_]([A-Za-z0-9_.-]{0,20}[A-Za-z0-9_])?\Z").filter(
    lambda part: (
        "--" not in part
        and ".." not in part
        and part != "models"
        and not part.endswith((".git",))
        and "." not in part[-13:]
    )
)
# Texts made of the pieces that attacks are made of, as well as of anything.
HOSTILE = st.one_of(
    st.text(max_size=60),
    st.lists(
        st.sampled_from(
            ["..", ".", "/", "//", "\\", "models", "a", "b.json", "C:", "~", "\0", "\n", "%2e", "é"]
        ),
        max_size=12,
    ).map("".join),
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gpt2", "gpt2"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("sentence-transformers/all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"),
        ("models/org/name/model.safetensors", "org/name"),
        ("models/org/name", "org/name"),
        ("org/name/model-00001-of-00002.safetensors", "org/name"),
        ("org/name/1_Pooling/config.json", "org/name"),
        ("models/name/model.safetensors", "name"),
        ("models/name", "name"),
        ("name/config.json", "name"),
        ("models", "models"),
        ("a" * MAX_ID_PART_CHARS, "a" * MAX_ID_PART_CHARS),
    ],
)
def test_ids_and_paths_of_models(text: str, expected: str) -> None:
    assert parse_model_id(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *(
            "/",
            "/etc/passwd",
            "..",
            "../x",
            "a/..",
            "a/../b",
            "./a",
            "a//b",
            "a/",
            "/a",
            "a/b/../c",
        ),
        *("a\\b", "C:\\a", "a\0b", "a\n", " a", "a b", "-a", "a-", ".a", "a.", "a--b", "a..b"),
        *("a.git", "é", "a/é", "https://x/y", "model.safetensors", "models/config.json", "a:b"),
        "a" * (MAX_ID_PART_CHARS + 1),
        "a/" * MAX_PATH_CHARS + "b",
    ],
)
def test_malformed_ids_are_refused(text: str) -> None:
    with pytest.raises(InvalidModelIdError) as caught:
        parse_model_id(text)
    assert caught.value.field == "model_id"
    assert len(caught.value.message) < 400


def test_an_empty_id_is_a_missing_field() -> None:
    with pytest.raises(MissingFieldError) as caught:
        parse_model_id("")
    assert caught.value.field == "model_id"


@given(org=ID_PART, name=ID_PART)
def test_an_id_stays_itself_and_its_path_means_it(org: str, name: str) -> None:
    model_id = f"{org}/{name}"
    assert parse_model_id(model_id) == model_id
    assert parse_model_id(f"models/{model_id}/model.safetensors") == model_id
    assert folder_name(model_id).split("--") == [org, name]


@given(HOSTILE)
def test_any_text_is_refused_or_means_one_safe_id(text: str) -> None:
    try:
        model_id = parse_model_id(text)
    except (InvalidModelIdError, MissingFieldError):
        return
    assert parse_model_id(model_id) == model_id
    assert check_file_path(folder_name(model_id)).parts == (folder_name(model_id),)


@pytest.mark.parametrize(
    "text",
    ["config.json", "1_Pooling/config.json", ".gitattributes", "a b/ü.txt", "..a/b..", "a/b:c"],
)
def test_relative_paths_are_accepted(text: str) -> None:
    assert check_file_path(text) == PurePosixPath(text)


@pytest.mark.parametrize(
    "text",
    [
        *("/etc/passwd", "..", "../a", "a/../../b", "a/..", ".", "./a", "a/./b", "a//b", "a/"),
        *("a\\b", "..\\a", "C:/a", "c:a", "a\0", "a\nb", "a\x7f", "a\u202eb", "\ud800"),
        *("x" * 256, "é" * 128, "a/" * MAX_PATH_CHARS + "b"),
    ],
)
def test_paths_that_leave_or_break_are_refused(text: str) -> None:
    with pytest.raises(InvalidPathError) as caught:
        check_file_path(text)
    assert caught.value.field == "file_path"
    assert len(caught.value.message) < 400
    caught.value.message.encode()  # it goes on the wire: no lone surrogate may be left


def test_an_empty_path_is_a_missing_field() -> None:
    with pytest.raises(MissingFieldError) as caught:
        check_file_path("")
    assert caught.value.field == "file_path"


@given(HOSTILE)
def test_any_text_is_refused_or_stays_inside(text: str) -> None:
    try:
        path = check_file_path(text)
    except (InvalidPathError, MissingFieldError):
        return
    assert str(path) == text
    assert (Path("/root") / path).resolve().is_relative_to("/root")


def test_symlinks_inside_are_followed_and_those_that_leave_are_refused(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "secret").write_text("x")
    (root / "real.json").write_text("{}")
    (root / "alias.json").symlink_to("real.json")
    (root / "file").symlink_to(outside / "secret")
    (root / "folder").symlink_to(outside)
    assert resolve_inside(root, PurePosixPath("alias.json")) == (root / "real.json").resolve()
    assert resolve_inside(root, PurePosixPath("new/file")) == (root / "new/file").resolve()
    for path in ("file", "folder/secret", "folder/new"):
        with pytest.raises(InvalidPathError):
            resolve_inside(root, PurePosixPath(path))


def test_loops_of_symlinks_are_refused(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    (tmp_path / "folder").symlink_to("folder/below")
    for path in ("circle", "one", "two", "circle/new", "one/config.json", "folder", "folder/a"):
        with pytest.raises(InvalidPathError, match="does not lead to a file"):
            resolve_inside(tmp_path, PurePosixPath(path))


def test_a_root_that_is_itself_a_symlink_is_fine(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    place = resolve_inside(tmp_path / "link", PurePosixPath("a"))
    assert place == (tmp_path / "real" / "a").resolve()


@pytest.mark.parametrize("text", ["", "main", "v1.0+cpu", "refs/pr/12", "a" * 40, "a" * 100, "1_x"])
def test_a_revision_is_a_branch_a_tag_or_a_commit(text: str) -> None:
    assert check_revision(text) == text
    assert split_revision(at_revision(ModelId("org/name"), text)) == ("org/name", text)


@pytest.mark.parametrize(
    "text",
    [
        *("..", "a/../b", "a..b", "/main", "main/", "a//b", ".hidden", "-flag", "+x", "a.lock"),
        *("a.", "a b", "a\nb", "a@b", "a%2Fb", "a\\b", "é", "a" * 101, "~", "HEAD^", "a:b", "\0"),
    ],
)
def test_a_hostile_revision_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        check_revision(text, "options[revision]")
    assert caught.value.field == "options[revision]"


def test_each_revision_has_a_folder_of_its_own() -> None:
    longest = ModelId("/".join(["a" * MAX_ID_PART_CHARS] * 2))
    revisions = ["", "main", "a/b", "a--b", *("a" * size for size in (39, 40, 41, 100))]
    folders = [folder_name(at_revision(longest, revision)) for revision in revisions]
    files = [with_file(at_revision(longest, "a" * 100), file) for file in ("x", "y/x", "y")]
    folders += [folder_name(each) for each in files]
    assert {split_revision(each) for each in files} == {(longest, "a" * 100)}
    assert len(set(folders)) == len(revisions) + len(files)
    assert all(len(folder.encode()) <= 255 and "/" not in folder for folder in folders)
    assert folder_name(at_revision(ModelId("org/name"), "refs/pr/1")) == "org--name@refs%2Fpr%2F1"
