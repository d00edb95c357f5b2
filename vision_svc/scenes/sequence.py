"""Media sequences: the shots of a film, what is seen in them, and statistics of its features."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ml import mediapipe_pb2 as pb
from shared.errors import InputTooLargeError, OutOfRangeError
from vision_svc import metrics
from vision_svc.detector import Answer
from vision_svc.frames.types import frame_context
from vision_svc.scenes import MEDIA_SEQUENCE
from vision_svc.scenes.clock import StreamClock
from vision_svc.scenes.inputs import FrameFeatures
from vision_svc.scenes.shots import ShotDetector
from vision_svc.scenes.subjects import SubjectDetector, SubjectTasks

if TYPE_CHECKING:
    from vision_svc.frames.types import DecodedFrame, SkippedFrame
    from vision_svc.instances import Instances
    from vision_svc.options import Options

SHOT_LABEL = "shot"
# Shots and other labels of a film; a film of two hours has some thousands.
MAX_LABELS = 10_000
# Names of features, and the characters of one.
MAX_FEATURES = 1_000
MAX_FEATURE_NAME = 200
# A detector misses somebody now and then: one search without them ends no label.
_MISSES = 1


@dataclass(frozen=True)
class _Moment:
    """A frame's place in the film, and the caller's own values of it."""

    place: int
    number: int
    timestamp_ms: int


@dataclass
class _Part:
    """A part of the film, from its first to its last frame."""

    label: str
    score: float
    first: _Moment
    last: _Moment
    last_search: int = 0


@dataclass
class _Statistics:
    """Mean, minimum and maximum of a feature."""

    count: int = 0
    total: float = 0.0
    least: float = math.inf
    most: float = -math.inf

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value
        self.least = min(self.least, value)
        self.most = max(self.most, value)


class MediaSequence:
    """Takes the frames of a film, and answers once, at its end.

    Args:
        instances: where detectors come from.
        tasks: what looks for faces and objects.
    """

    def __init__(self, instances: Instances, tasks: SubjectTasks) -> None:
        self._subjects = SubjectDetector(instances, tasks)
        self._metrics = metrics.of_task(MEDIA_SEQUENCE)
        self._clock = StreamClock()
        self._detector = ShotDetector()
        self._shots: list[_Part] = []
        self._labels: list[_Part] = []
        self._open: dict[str, _Part] = {}
        self._features: dict[str, _Statistics] = {}
        self._frames = 0
        self._searches = 0
        self._until_search = 0
        self._has_numbers = False
        self._timing = pb.FrameTiming()

    def follow(self, frame: DecodedFrame, options: Options) -> Sequence[Answer]:
        start = time.perf_counter()
        source = frame.source
        with frame_context(source):
            moment = _Moment(self._frames, source.number, source.timestamp_ms)
            self._add_features(source.extra)
            self._add_to_shot(frame, moment)
            if self._until_search == 0:
                self._search(frame, moment, options)
                self._until_search = int(options["sample_every"])
            self._until_search -= 1
        self._frames += 1
        self._has_numbers |= source.number != 0
        self._count_time(frame, time.perf_counter() - start)
        return []

    def skip(self, frame: SkippedFrame) -> Sequence[Answer]:
        del frame  # without a picture, it is no part of the film
        return []

    def finish(self, options: Options) -> Sequence[Answer]:
        del options
        labels = sorted(self._labels, key=lambda part: (part.first.place, part.label))
        response = pb.MediaSequenceResponse(
            labels=[self._label(part) for part in (*self._shots, *labels)],
            features={
                f"{name}_{kind}": value
                for name, each in self._features.items()
                for kind, value in (
                    ("mean", each.total / each.count),
                    ("min", each.least),
                    ("max", each.most),
                )
            },
            total_frames=self._frames,
            timing=self._timing,
        )
        return [Answer(response, None, 0.0)]

    def close(self) -> None:
        self._subjects.close()

    def _add_features(self, extra: object) -> None:
        assert isinstance(extra, FrameFeatures), "the servicer adds it"
        for name, value in extra.values.items():
            if not math.isfinite(value):
                raise OutOfRangeError(
                    f"feature {name[:40]!r} must be a finite number, not {value}", field="features"
                )
            if len(name) > MAX_FEATURE_NAME:
                raise OutOfRangeError(
                    f"the name of a feature must have at most {MAX_FEATURE_NAME} characters, not "
                    f"{len(name)}",
                    field="features",
                )
            if name not in self._features and len(self._features) == MAX_FEATURES:
                raise InputTooLargeError(
                    f"the frames have more than {MAX_FEATURES} features of different names, which "
                    "is the limit",
                    metadata={"max_features": str(MAX_FEATURES)},
                )
            self._features.setdefault(name, _Statistics()).add(value)

    def _add_to_shot(self, frame: DecodedFrame, moment: _Moment) -> None:
        seconds = self._clock.step(frame.source.timestamp_ms)
        if sure := self._detector.cut(frame.image, seconds):
            self._shots.append(self._begin(SHOT_LABEL, sure, moment))
            self._open.clear()  # labels end with their shot
            self._until_search = 0
        self._shots[-1].last = moment

    def _search(self, frame: DecodedFrame, moment: _Moment, options: Options) -> None:
        """Looks what is in a frame; those labels begin or go on."""
        best: dict[str, float] = {}
        seen = (*self._subjects.faces(frame, options), *self._subjects.objects(frame, options))
        for each in seen:
            best[each.label] = max(best.get(each.label, 0.0), each.score)
        for label, score in best.items():
            part = self._open.get(label)
            if part is None or part.last_search < self._searches - 1 - _MISSES:
                part = self._open[label] = self._begin(label, score, moment)
                self._labels.append(part)
            part.last, part.last_search = moment, self._searches
            part.score = max(part.score, score)
        self._searches += 1

    def _begin(self, label: str, score: float, moment: _Moment) -> _Part:
        if len(self._shots) + len(self._labels) == MAX_LABELS:
            raise InputTooLargeError(
                f"the film has more than {MAX_LABELS} shots and labels, which is the limit",
                metadata={"max_labels": str(MAX_LABELS)},
            )
        return _Part(label, score, moment, moment, self._searches)

    def _label(self, part: _Part) -> pb.SequenceLabel:
        first, last = (
            moment.number if self._has_numbers else moment.place
            for moment in (part.first, part.last)
        )
        return pb.SequenceLabel(
            label=part.label,
            confidence=part.score,
            start_frame=first,
            end_frame=last,
            start_ms=part.first.timestamp_ms,
            end_ms=part.last.timestamp_ms,
        )

    def _count_time(self, frame: DecodedFrame, seconds: float) -> None:
        self._metrics.inference_seconds.observe(seconds)
        busy = frame.decode_seconds + seconds
        waited = time.perf_counter() - frame.source.received_at - busy
        self._timing.decode_ms += frame.decode_seconds * 1000
        self._timing.inference_ms += seconds * 1000
        self._timing.waiting_ms += max(0.0, waited) * 1000
