"""Every vision task on a clip, by `ml stream`: annotated clips and contact sheets."""

from __future__ import annotations

import itertools
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import av
import cv2
import numpy as np

from demo.commands import CommandError, Commands
from tools import vision_clips

if TYPE_CHECKING:
    from vision_svc.frames.types import Rgb

FRAMES = 48
FPS = 24
SHEET_COLUMNS, SHEET_ROWS = 4, 2
_SAID = re.compile(r"(\d+) frames, (\d+) with a result, ([\d.]+) ms each")
# Exit code of `ml`.
_FAILED_PRECONDITION = 19


@dataclass(frozen=True)
class Result:
    """The files and figures of one task.

    Attributes:
        task: its name in file names.
        clip, sheet: the files.
        frames: the number of frames sent.
        found: the number of frames with a result.
        inference_ms: the service's mean inference time of a frame.
    """

    task: str
    clip: Path
    sheet: Path
    frames: int
    found: int
    inference_ms: float


def person_clip() -> list[Rgb]:
    """A moving person if the test data is available, otherwise a camera over a portrait."""
    if vision_clips.PERSON_CLIP.is_file():
        return list(vision_clips.video_frames(vision_clips.PERSON_CLIP, FRAMES, every=2))
    return portrait_clip()


def portrait_clip() -> list[Rgb]:
    """A camera that moves over a portrait."""
    return list(vision_clips.moving(vision_clips.astronaut(), FRAMES))


def face_clip() -> list[Rgb]:
    """The same, closer."""
    return list(vision_clips.moving(vision_clips.astronaut()[:300, 80:380], FRAMES))


def hand_clip() -> list[Rgb]:
    """A camera over two hands if the test data is available, otherwise a drawn hand."""
    photograph = vision_clips.TEST_DATA / "two_hands_thumb_down.jpg"
    if photograph.is_file():
        return list(vision_clips.moving(vision_clips.read_picture(photograph), FRAMES))
    return list(vision_clips.moving_hand(FRAMES))


def crossing_clip() -> list[Rgb]:
    """A cat and a cup that pass each other."""
    return list(itertools.islice(vision_clips.crossing(120), 0, 2 * FRAMES, 2))


def cup_clip() -> list[Rgb]:
    """A camera that moves over a cup."""
    return list(vision_clips.moving(vision_clips.coffee(), FRAMES))


def two_shots() -> list[Rgb]:
    """A person, and then a cup of coffee."""
    half = FRAMES // 2
    coffee = list(vision_clips.moving(vision_clips.coffee(), FRAMES - half))
    return [*portrait_clip()[:half], *coffee]


# Task to its clip.
TASKS: dict[str, Callable[[], list[Rgb]]] = {
    "faces": portrait_clip,
    "mesh": face_clip,
    "iris": face_clip,
    "hands": hand_clip,
    "pose": person_clip,
    "holistic": person_clip,
    "objects": crossing_clip,
    "tracks": crossing_clip,
    "boxes3d": cup_clip,
    "selfie": person_clip,
    "hair": portrait_clip,
    "templates": portrait_clip,
    "auto-flip": two_shots,
}
# Options of the tasks that are not their defaults.
OPTIONS: dict[str, dict[str, str]] = {
    "selfie": {"mask_format": "alpha"},
    "hair": {"mask_format": "alpha"},
    "tracks": {"min_detection_confidence": "0.4"},
    "boxes3d": {"object_class": "cup", "min_detection_confidence": "0.3"},
}


def write_clip(path: Path, images: Sequence[Rgb]) -> None:
    """An H.264 file that browsers play."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=FPS, options={"crf": "20", "preset": "veryfast"}
        )
        stream.height, stream.width = (side - side % 2 for side in images[0].shape[:2])
        stream.pix_fmt = "yuv420p"
        for image in images:
            even = np.ascontiguousarray(image[: stream.height, : stream.width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        container.mux(stream.encode(None))


def write_sheet(path: Path, images: Sequence[Rgb]) -> None:
    """Some frames of the clip side by side, as one PNG."""
    count = SHEET_COLUMNS * SHEET_ROWS
    chosen = [images[index * len(images) // count] for index in range(count)]
    small = [
        cv2.resize(image, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA) for image in chosen
    ]
    rows = [
        np.hstack(small[start : start + SHEET_COLUMNS]) for start in range(0, count, SHEET_COLUMNS)
    ]
    cv2.imwrite(str(path), np.vstack(rows)[..., ::-1])


def run_task(ml: Commands, task: str, out: Path, folder: Path) -> Result:
    """One task, from clip to files.

    Raises:
        CommandError: the service refused or failed.
    """
    images = TASKS[task]()
    video = folder / f"{task}.mp4"
    write_clip(video, images)
    clip_path, sheet_path = out / f"vision-{task}.mp4", out / f"vision-{task}.png"
    options = [f"--option={name}={value}" for name, value in OPTIONS.get(task, {}).items()]
    if task == "templates":
        # The round patch of the portrait, in the first frame. It has fine detail: a plain part of a
        # picture is much like others, and is found in many places.
        template = folder / "template.png"
        cv2.imwrite(str(template), images[0][360:450, 225:335, ::-1])
        options += ["--template", str(template)]
    said = ml.run("stream", task, str(video), "--out", str(clip_path), *options)
    ((frames, found, milliseconds),) = _SAID.findall(said)
    write_sheet(sheet_path, list(vision_clips.video_frames(clip_path, FRAMES)))
    return Result(task, clip_path, sheet_path, int(frames), int(found), float(milliseconds))


def run(ml: Commands, out: Path) -> list[Result]:
    """Runs all tasks, and writes into `out`. A task whose model is missing is left out.

    Raises:
        CommandError: the service refused or failed.
    """
    out.mkdir(parents=True, exist_ok=True)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for task in TASKS:
            try:
                results.append(run_task(ml, task, out, Path(folder)))
            except CommandError as error:
                if error.exit_code != _FAILED_PRECONDITION:
                    raise
                print(f"{task}: off: {error}")  # its model file is missing
    return results
