"""Auto flip: crops the frames of a stream to another aspect ratio, around what is in them."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ml import mediapipe_pb2 as pb
from shared.errors import FrameSizeError, InputTooLargeError
from vision_svc import metrics
from vision_svc.detector import Answer, skipped
from vision_svc.frames.decoder import canonical_format
from vision_svc.frames.pictures import PICTURE_FORMATS, encode_picture
from vision_svc.frames.raw import RAW_FORMATS, SUBSAMPLED_FORMATS, crop_raw
from vision_svc.frames.types import Box, SkippedFrame, frame_context
from vision_svc.scenes import AUTO_FLIP
from vision_svc.scenes.camera import Camera, Span, SubjectTrack
from vision_svc.scenes.clock import StreamClock
from vision_svc.scenes.shots import ShotDetector
from vision_svc.scenes.subjects import SubjectDetector, SubjectTasks

if TYPE_CHECKING:
    from vision_svc.frames.types import DecodedFrame
    from vision_svc.instances import Instances
    from vision_svc.options import Options
    from vision_svc.scenes.subjects import Seen

MAX_LOOK_AHEAD = 30
# Pixels of the frames that wait for later ones, about 100 MB: 15 frames of 1920 x 1080.
MAX_WAITING_PIXELS = 33_177_600
# Objects take ten times as long to find as faces, and move little in so many frames.
_OBJECTS_EVERY = 4


def crop_size(width: int, height: int, aspect: str) -> tuple[int, int]:
    """The largest size of an aspect ratio that fits into a frame, with even sides.

    Args:
        width, height: the frame's.
        aspect: such as "9:16".

    Raises:
        FrameSizeError: the frame is too small.
    """
    if min(width, height) < 2:
        raise FrameSizeError(
            f"a frame must be at least 2 x 2 to be cropped, not {width} x {height}", field="width"
        )
    across, down = (int(part) for part in aspect.split(":"))
    if width * down > height * across:
        width = max(2, height * across // down)
    else:
        height = max(2, width * down // across)
    return width - width % 2, height - height % 2


@dataclass
class _Held:
    """A frame whose answer waits for later ones."""

    frame: DecodedFrame
    subject: Span | None
    cuts: bool
    seconds: float
    busy: float


class AutoFlip:
    """Crops the frames of one stream.

    Args:
        instances: where detectors come from.
        tasks: what looks for subjects.
    """

    def __init__(self, instances: Instances, tasks: SubjectTasks) -> None:
        self._subjects = SubjectDetector(instances, tasks)
        self._metrics = metrics.of_task(AUTO_FLIP)
        self._clock = StreamClock()
        self._shots = ShotDetector()
        self._held: deque[_Held | SkippedFrame] = deque()
        self._ready: list[Answer] = []
        self._options: Options = {}
        self._look_ahead = 0
        self._size = (0, 0)
        self._crop = (0, 0)
        self._objects: Sequence[Seen] = ()
        self._objects_due = 0
        self._shot = -1

    def follow(self, frame: DecodedFrame, options: Options) -> Sequence[Answer]:
        start = time.perf_counter()
        self._options = options
        height, width = frame.image.shape[:2]
        with frame_context(frame.source):
            new_size = (width, height) != self._size
            if new_size:
                self._settle(0)
                self._begin_size(width, height, options)
            seconds = self._clock.step(frame.source.timestamp_ms)
            cuts = self._shots.cut(frame.image, seconds) > 0 or new_size
            if cuts:
                self._track.begin_shot()
                self._objects_due = 0
            subject = self._track.update(self._look(frame, options), seconds)
        busy = time.perf_counter() - start
        if canonical_format(frame.source.format) not in RAW_FORMATS:
            # Of what waits, only raw bytes are needed again, and they are as large as the picture.
            frame = replace(frame, source=replace(frame.source, data=b""))
        self._held.append(_Held(frame, subject, cuts, seconds, busy))
        self._settle(self._look_ahead)
        return self._take()

    def skip(self, frame: SkippedFrame) -> Sequence[Answer]:
        # Behind the frames that wait. It counts as one of those that they wait for.
        self._held.append(replace(frame, source=replace(frame.source, data=b"")))
        self._settle(self._look_ahead)
        return self._take()

    def finish(self, options: Options) -> Sequence[Answer]:
        del options
        self._settle(0)
        return self._take()

    def close(self) -> None:
        self._subjects.close()

    def _begin_size(self, width: int, height: int, options: Options) -> None:
        """A new crop, camera and subject for frames of this size."""
        crop = crop_size(width, height, str(options["aspect"]))
        look_ahead = int(options["look_ahead"])
        waiting = width * height * look_ahead
        if waiting > MAX_WAITING_PIXELS:
            raise InputTooLargeError(
                f"look_ahead {look_ahead} of frames of {width} x {height} is {waiting} "
                f"pixels, which exceeds the limit of {MAX_WAITING_PIXELS}",
                metadata={"max_waiting_pixels": str(MAX_WAITING_PIXELS)},
            )
        self._size, self._crop, self._look_ahead = (width, height), crop, look_ahead
        self._axis = 0 if width - crop[0] > height - crop[1] else 1
        side, part = self._size[self._axis], crop[self._axis]
        self._track = SubjectTrack(side, part, self._axis)
        self._camera = Camera(side, part, still=options["camera"] == "still")
        self._shots = ShotDetector()

    def _look(self, frame: DecodedFrame, options: Options) -> Sequence[Seen]:
        if self._objects_due == 0:
            self._objects = self._subjects.objects(frame, options)
            self._objects_due = _OBJECTS_EVERY
        self._objects_due -= 1
        return [*self._subjects.faces(frame, options), *self._objects]

    def _settle(self, waiting: int) -> None:
        """Makes the answers to all frames but so many, which wait on."""
        while self._held and (len(self._held) > waiting or isinstance(self._held[0], SkippedFrame)):
            held = self._held.popleft()
            self._ready.append(
                skipped(pb.VideoFrame(), held)
                if isinstance(held, SkippedFrame)
                else self._answer(held, self._options)
            )

    def _take(self) -> list[Answer]:
        """The answers that are ready. After an error, `finish` takes those before it."""
        ready, self._ready = self._ready, []
        return ready

    def _answer(self, held: _Held, options: Options) -> Answer:
        start = time.perf_counter()
        self._aim(held)
        box = self._box(canonical_format(held.frame.source.format))
        data, name = _cropped(held.frame, box, options)
        response = pb.VideoFrame(
            frame_data=data,
            format=name,
            width=box.width,
            height=box.height,
            metadata={
                "crop_x": str(box.x),
                "crop_y": str(box.y),
                "crop_width": str(box.width),
                "crop_height": str(box.height),
                "shot": str(self._shot),
            },
        )
        busy = held.busy + time.perf_counter() - start
        self._metrics.inference_seconds.observe(busy)
        return Answer(response, held.frame, busy)

    def _aim(self, held: _Held) -> None:
        """Moves the camera on to a frame, with regard to the frames that wait behind it."""
        later = (each for each in self._held if isinstance(each, _Held))
        ahead = list(itertools.takewhile(lambda each: not each.cuts, later))
        middles = [each.subject.middle for each in (held, *ahead) if each.subject]
        goal = sum(middles) / len(middles) if middles else None
        if held.cuts:
            self._shot += 1
            self._camera.cut(goal)
        ahead_seconds = sum(each.seconds for each in ahead) / 2
        self._camera.move(goal, held.subject, held.seconds, ahead_seconds)

    def _box(self, format_name: str) -> Box:
        """The crop in whole pixels; chroma of half the size has a place at even ones alone."""
        step = 2 if format_name in SUBSAMPLED_FORMATS else 1
        last = self._size[self._axis] - self._crop[self._axis]
        begin = min(round(self._camera.position / step) * step, last - last % step)
        x, y = (begin, 0) if self._axis == 0 else (0, begin)
        return Box(x, y, *self._crop)


def _cropped(frame: DecodedFrame, box: Box, options: Options) -> tuple[bytes, str]:
    """The bytes of a part of a frame, and their format."""
    name = canonical_format(frame.source.format)
    if options["output_format"] == "same" and name in RAW_FORMATS:
        return crop_raw(frame.source, name, box), name
    if options["output_format"] != "same" or name not in PICTURE_FORMATS:
        name = "jpeg"
    part = frame.image[box.slices(1)]
    return encode_picture(part, name, int(options["jpeg_quality"])), name
