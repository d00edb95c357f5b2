"""Runs every vision task on a clip and draws the results.

`python -m demo.vision --address 127.0.0.1:50051` writes, for each task, an annotated clip
(`vision-TASK.mp4`) and a contact sheet (`vision-TASK.png`) into `out/`. From code: `run`.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import cv2
import grpc
import numpy as np

from cli.drawing import DRAWINGS
from ml import mediapipe_pb2 as pb
from ml import mediapipe_pb2_grpc
from tools import vision_clips
from tools.models import REPOSITORY

if TYPE_CHECKING:
    from vision_svc.frames.types import Rgb

FRAMES = 48
FPS = 24
SHEET_COLUMNS, SHEET_ROWS = 4, 2
_MAX_MESSAGE_BYTES = 64 << 20


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


# Task to its RPC and its clip.
TASKS: dict[str, tuple[str, Callable[[], list[Rgb]]]] = {
    "faces": ("StreamFaceDetection", portrait_clip),
    "mesh": ("StreamFaceMesh", face_clip),
    "iris": ("StreamIrisTracking", face_clip),
    "hands": ("StreamHandTracking", hand_clip),
    "pose": ("StreamPoseTracking", person_clip),
    "holistic": ("StreamHolisticTracking", person_clip),
    "objects": ("StreamObjectDetection", crossing_clip),
    "tracks": ("StreamObjectTracking", crossing_clip),
    "boxes3d": ("StreamObjectDetection3D", cup_clip),
    "selfie": ("StreamSelfieSegmentation", person_clip),
    "hair": ("StreamHairSegmentation", portrait_clip),
    "templates": ("StreamTemplateMatching", portrait_clip),
    "auto-flip": ("StreamAutoFlip", two_shots),
}
# Options of the tasks that are not their defaults.
OPTIONS: dict[str, dict[str, str]] = {
    "selfie": {"mask_format": "alpha"},
    "hair": {"mask_format": "alpha"},
    "tracks": {"min_detection_confidence": "0.4"},
    "boxes3d": {"object_class": "cup", "min_detection_confidence": "0.3"},
}


def messages(images: Sequence[Rgb], options: dict[str, str]) -> Iterator[pb.VideoFrame]:
    """The clip as JPEG frames."""
    for number, image in enumerate(images):
        _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
        yield pb.VideoFrame(
            frame_data=data.tobytes(),
            format="jpeg",
            timestamp_ms=number * 1000 // FPS,
            frame_number=number,
            metadata=options,
        )


def template_requests(
    images: Sequence[Rgb], options: dict[str, str]
) -> Iterator[pb.TemplateMatchingRequest]:
    """The clip, and as the template the round patch of the portrait, in its first frame.

    It has fine detail: a plain part of a picture is much like others, and is found in many places.
    """
    template = images[0][360:450, 225:335]
    _, data = cv2.imencode(".png", template[..., ::-1])
    for frame in messages(images, options):
        yield pb.TemplateMatchingRequest(
            frame_data=frame.frame_data,
            template_data=b"" if frame.frame_number else data.tobytes(),
            threshold=0.5,
            timestamp_ms=frame.timestamp_ms,
            frame_number=frame.frame_number,
            metadata=options,
        )


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


def run_task(stub: Any, task: str, out: Path) -> Result:
    """One task, from clip to files.

    Raises:
        grpc.RpcError: the service refused or failed.
    """
    rpc, clip = TASKS[task]
    images = clip()
    draw = DRAWINGS[task]
    drawn, found, seconds = [], 0, 0.0
    requests = template_requests if task == "templates" else messages
    for answer in getattr(stub, rpc)(requests(images, OPTIONS.get(task, {}))):
        canvas = images[answer.frame_number].copy()
        found += draw(canvas, answer)
        seconds += answer.timing.inference_ms / 1000
        drawn.append(canvas)
    clip_path, sheet_path = out / f"vision-{task}.mp4", out / f"vision-{task}.png"
    write_clip(clip_path, drawn)
    write_sheet(sheet_path, drawn)
    return Result(task, clip_path, sheet_path, len(drawn), found, seconds / len(drawn) * 1000)


def run(
    address: str, out: Path = REPOSITORY / "out", report: Callable[[str], None] = print
) -> list[Result]:
    """Runs all tasks through `address`, writes into `out`, and reports a line for each task.

    Raises:
        grpc.RpcError: the service refused or failed.
    """
    out.mkdir(parents=True, exist_ok=True)
    options = [("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES)]
    results = []
    with grpc.insecure_channel(address, options=options) as channel:
        stub = mediapipe_pb2_grpc.MediapipeServiceStub(channel)
        for task in TASKS:
            try:
                result = run_task(stub, task, out)
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                    raise
                report(f"{task}: off: {error.details()}")  # its model file is missing
                continue
            report(
                f"{task}: found in {result.found} of {result.frames} frames, "
                f"{result.inference_ms:.1f} ms a frame, {result.sheet.name}, {result.clip.name}"
            )
            results.append(result)
    return results


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m demo.vision")
    parser.add_argument("--address", default="127.0.0.1:50051", help="of Envoy or vision_svc")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "out", help="folder of the files")
    options = parser.parse_args()
    run(options.address, options.out)


if __name__ == "__main__":
    main()
