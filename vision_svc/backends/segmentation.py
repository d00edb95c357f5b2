"""Masks of people and of hair, straight on LiteRT: a fifth less CPU than the Tasks graph.

The models are MediaPipe's own, and each step is what MediaPipe's ImageSegmenter does: the picture
is stretched to the model's input, scaled to 0..1, and the answer is stretched back. How it is
stretched depends on the model: with three channels the first pixels of both pictures are laid on
each other, with four their edges. That shift of less than a pixel is a tenth of a small mask.
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

# What models answer for a pixel: of a person, or scores of hair and of everything else.
_ONE_PROBABILITY = 1
_TWO_CLASSES = 2
_HAIR = 1  # class 0 is everything else
_RGB_AND_MASK = 4


class Segmenter:
    """One model that gives each pixel a probability, as a mask of bytes.

    Masks of 8 bits are made at the model's size and then stretched, which costs a quarter of
    stretching floats and differs by at most one step of 255.
    """

    def __init__(self, path: Path, mask_format: str) -> None:
        self._interpreter = Interpreter(model_path=str(path), num_threads=1)
        self._interpreter.allocate_tensors()
        (self._input,) = self._interpreter.get_input_details()
        (self._output,) = self._interpreter.get_output_details()
        _, height, width, channels = (int(n) for n in self._input["shape"])
        classes = int(self._output["shape"][-1])
        if classes not in (_ONE_PROBABILITY, _TWO_CLASSES):
            raise ValueError(f"a model of {classes} classes is neither of people nor of hair")
        self._size = (width, height)
        # A fourth channel is the mask of the frame before; each frame is taken by itself, so it
        # stays zero, as in MediaPipe.
        self._pixels = np.zeros((1, height, width, channels), np.float32)
        self._format = mask_format

    def detect(self, image: Rgb, time_ms: int) -> pb.SegmentationResponse:
        del time_ms  # every frame is taken by itself
        np.multiply(self._stretch(image), np.float32(1 / 255), out=self._pixels[0, :, :, :3])
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

    def _stretch(self, image: Rgb) -> Rgb:
        """The picture at the size of the model's input."""
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
        """The model's answer for the last input: 0 to 255, at its own size."""
        answer = self._interpreter.get_tensor(self._output["index"])[0]
        if answer.shape[-1] == _ONE_PROBABILITY:
            probability = answer[..., 0]
        else:  # softmax over two classes
            probability = 1.0 / (1.0 + np.exp(answer[..., 1 - _HAIR] - answer[..., _HAIR]))
        levels: npt.NDArray[np.uint8] = np.rint(probability * 255).astype(np.uint8)
        return levels


def segmenter(path: Path, options: Options, mode: Mode) -> Segmenter:
    """A segmenter of either kind; the model's output says which."""
    del mode  # both are the same here
    return Segmenter(path, str(options["mask_format"]))
