"""Masks of people and of hair, directly on LiteRT: a fifth less CPU than the Tasks graph.

The models are MediaPipe's, and each step is that of MediaPipe's ImageSegmenter: the picture is
resized to the model's input and scaled to 0..1, and the output is resized back. How it is resized
depends on the model: with three channels, the first pixels of both pictures are aligned; with four,
their edges. That shift of less than a pixel is a tenth of a small mask.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from ai_edge_litert.interpreter import Interpreter

from ml import mediapipe_pb2 as pb
from vision_svc.frames.types import as_rgb

if TYPE_CHECKING:
    import numpy.typing as npt

    from vision_svc.detector import Mode
    from vision_svc.frames.types import Rgb
    from vision_svc.options import Options

# The model's outputs for a pixel: the probability of a person, or the scores of hair and of
# everything else.
_ONE_PROBABILITY = 1
_TWO_CLASSES = 2
_HAIR = 1  # class 0 is everything else
_RGB_AND_MASK = 4


class Segmenter:
    """A model that gives each pixel a probability, as a mask with one byte per pixel.

    The mask is converted to 8 bits at the model's size and then resized, which costs a quarter of
    resizing floats and differs by at most one step of 255.
    """

    def __init__(self, path: Path, mask_format: str) -> None:
        self._interpreter = Interpreter(model_path=str(path), num_threads=1)
        self._interpreter.allocate_tensors()
        (self._input,) = self._interpreter.get_input_details()
        (self._output,) = self._interpreter.get_output_details()
        _, height, width, channels = (int(n) for n in self._input["shape"])
        classes = int(self._output["shape"][-1])
        if classes not in (_ONE_PROBABILITY, _TWO_CLASSES):
            raise ValueError(f"a model of {classes} classes segments neither people nor hair")
        self._size = (width, height)
        # A fourth channel is the mask of the last frame. Frames are independent here, so it stays
        # zero, as in MediaPipe.
        self._pixels = np.zeros((1, height, width, channels), np.float32)
        self._format = mask_format

    def detect(self, image: Rgb, time_ms: int) -> pb.SegmentationResponse:
        del time_ms  # frames are independent
        np.multiply(self._resize(image), np.float32(1 / 255), out=self._pixels[0, :, :, :3])
        self._interpreter.set_tensor(self._input["index"], self._pixels)
        self._interpreter.invoke()
        height, width = image.shape[:2]
        mask = cv2.resize(self._probability(), (width, height), interpolation=cv2.INTER_LINEAR)
        if self._format == "binary":
            _, mask = cv2.threshold(mask, 127, 255, cv2.THRESH_BINARY)
        return pb.SegmentationResponse(
            mask=mask.tobytes(), width=width, height=height, format=self._format
        )

    def close(self) -> None:
        del self._interpreter

    def _resize(self, image: Rgb) -> Rgb:
        """The picture in the size of the model's input."""
        if self._pixels.shape[-1] == _RGB_AND_MASK:
            return as_rgb(cv2.resize(image, self._size, interpolation=cv2.INTER_LINEAR))
        height, width = image.shape[:2]
        scale = np.array([[self._size[0] / width, 0, 0], [0, self._size[1] / height, 0]])
        return as_rgb(
            cv2.warpAffine(
                image, scale, self._size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
            )
        )

    def _probability(self) -> npt.NDArray[np.uint8]:
        """The model's output for the last input, from 0 to 255, in the model's size."""
        answer = self._interpreter.get_tensor(self._output["index"])[0]
        if answer.shape[-1] == _ONE_PROBABILITY:
            probability = answer[..., 0]
        else:  # softmax over two classes
            probability = 1.0 / (1.0 + np.exp(answer[..., 1 - _HAIR] - answer[..., _HAIR]))
        levels: npt.NDArray[np.uint8] = np.rint(probability * 255).astype(np.uint8)
        return levels


def segmenter(path: Path, options: Options, mode: Mode) -> Segmenter:
    """A segmenter of people or of hair, depending on the model's output."""
    del mode  # makes no difference
    return Segmenter(path, str(options["mask_format"]))
