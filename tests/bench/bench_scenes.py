"""What needs no server to be timed: one pass for all of a person, and the tasks on whole streams.

`python -m tests.bench.bench_scenes` prints CPU milliseconds a frame, of all threads of this
process, and writes out/bench/scenes.json and scenes.md. All arms run in turns:

* holistic against face mesh, hands and pose one after the other, which find the same parts of a
  person, by the service's own detectors;
* template matching against OpenCV's matchTemplate alone, on the same pixels;
* auto flip and media sequence, with faces.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import cv2
import numpy as np

from tests.bench.machine import quiet_machine
from tests.bench.results import parser_of, publish
from tests.integration.vision.reference import clip_for
from tools.models import model_dir
from vision_svc import tasks
from vision_svc.assets import Assets
from vision_svc.detector import Mode, StreamTask, VisionTask
from vision_svc.frames.types import DecodedFrame, EncodedFrame, Limits
from vision_svc.instances import Instances
from vision_svc.options import parse_options
from vision_svc.scenes.inputs import FrameFeatures, TemplateSource, TemplateWish

STEP_MS = 33
WARM_UP_FRAMES = 5
Arm = Callable[[], None]


def cpu_ms(run: Callable[[np.ndarray, int], object], images: Sequence[np.ndarray]) -> float:
    """CPU milliseconds of this process for a frame."""
    for number, image in enumerate(images):
        if number == WARM_UP_FRAMES:
            start = time.process_time()
        run(image, (number + 1) * STEP_MS)
    return (time.process_time() - start) * 1000 / (len(images) - WARM_UP_FRAMES)


def detectors(folder: Path, chosen: Sequence[VisionTask], images: Sequence[np.ndarray]) -> float:
    """Some tasks, one after the other on each frame."""
    with ExitStack() as cleanup:
        opened = []
        for task in chosen:
            options = parse_options(task.options)
            detector = task.open(folder / task.asset(options).file, options, Mode.VIDEO)
            opened.append(cleanup.enter_context(closing(detector)))
        return cpu_ms(lambda image, ms: [each.detect(image, ms) for each in opened], images)


def stream_task(
    folder: Path, task: StreamTask, images: Sequence[np.ndarray], extra: object, **options: str
) -> float:
    """A task on a whole stream, with raw frames."""
    instances = Instances(Assets(folder), 512, 4, lambda: None)
    chosen = parse_options(task.options, options)
    with closing(task.open(instances, Limits())) as follower:

        def follow(image: np.ndarray, ms: int) -> None:
            height, width = image.shape[:2]
            source = EncodedFrame(image.tobytes(), "rgb", width, height, ms, extra=extra)
            follower.follow(DecodedFrame(image, source, 0.0), chosen)

        return cpu_ms(follow, images)


def arms(folder: Path, frames: int) -> dict[str, Callable[[], float]]:
    """All that is timed, by name."""
    person = [np.ascontiguousarray(image) for image in clip_for("holistic", frames)]
    template = np.ascontiguousarray(person[0][120:216, 240:368])
    wish = TemplateWish(TemplateSource(template.tobytes(), 128, 96))
    parts = [tasks.FACE_MESH, tasks.HAND_TRACKING, tasks.POSE_TRACKING]
    of_stream = tasks.STREAM_TASKS

    def opencv(image: np.ndarray, _: int) -> object:
        return cv2.matchTemplate(image, template, cv2.TM_CCOEFF_NORMED)

    return {
        "holistic": lambda: detectors(folder, [tasks.HOLISTIC_TRACKING], person),
        "mesh, hands and pose": lambda: detectors(folder, parts, person),
        "template matching": lambda: stream_task(
            folder, of_stream["template-matching"], person, wish
        ),
        "OpenCV's matchTemplate": lambda: cpu_ms(opencv, person),
        "auto flip": lambda: stream_task(
            folder, of_stream["auto-flip"], person, None, subjects="faces"
        ),
        "media sequence": lambda: stream_task(
            folder, of_stream["media-sequence"], person, FrameFeatures({}), subjects="faces"
        ),
    }


def table(cpu: Mapping[str, float], frames: int, rounds: int) -> str:
    """Markdown, from CPU milliseconds a frame by arm."""
    share = cpu["holistic"] / cpu["mesh, hands and pose"]
    return "\n".join(
        [
            f"{frames} frames, medians of {rounds} rounds.",
            "",
            "| arm | CPU ms a frame |",
            "|---|---:|",
            *(f"| {name} | {value:.1f} |" for name, value in cpu.items()),
            "",
            f"Holistic takes {share:.2f} times the CPU of mesh, hands and pose.",
        ]
    )


def main() -> None:
    """Entry point."""
    parser = parser_of(__doc__)
    parser.add_argument("--frames", type=int, help="of a clip")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    frames = max(options.frames or (60 if options.short else 150), WARM_UP_FRAMES + 1)
    cv2.setNumThreads(1)
    timed = arms(model_dir() / "vision", frames)
    runs: dict[str, list[float]] = {name: [] for name in timed}
    with quiet_machine(busy=options.busy) as machine:
        for _ in range(options.rounds):
            for name, run in timed.items():
                runs[name].append(run())
    medians = {name: statistics.median(each) for name, each in runs.items()}
    report = {"frames": frames, "cpu_ms": medians, "runs": runs}
    publish(options.out, "scenes", machine, report, table(medians, frames, options.rounds))


if __name__ == "__main__":
    main()
