"""Calls a MediaPipe task in its C library, in the calling thread.

The Tasks API passes each call on to a thread of its own and each result through Python objects,
point by point. Both cost more than they give here: an instance has one user at a time already.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import mediapipe as mp
import numpy as np
from mediapipe.tasks.python.core.mediapipe_c_bindings import load_raw_library
from mediapipe.tasks.python.core.mediapipe_c_utils import handle_status
from mediapipe.tasks.python.vision.core import image

if TYPE_CHECKING:
    from vision_svc.frames.types import Rgb

T = TypeVar("T")


class TaskCall:
    """One of a task's calls; one thread at a time may make it.

    The signatures of its functions are those that the Tasks API has set on the library.

    Args:
        task: the Tasks object, which stays the owner of the graph.
        call: the function's name after the task's, such as "DetectForVideo".
        result_type: the C structure of its result.
    """

    def __init__(self, task: Any, call: str, result_type: type[ctypes.Structure]) -> None:
        name = f"Mp{type(task).__name__}"
        self._lib = load_raw_library(image._CTYPES_SIGNATURES)  # noqa: SLF001
        self._handle = task._handle  # noqa: SLF001
        self._call = getattr(self._lib, name + call)
        self._close_result = getattr(self._lib, f"{name}CloseResult")
        self._result_type = result_type

    def run(self, pixels: Rgb, read: Callable[[Any], T], *clock: int) -> T:
        """Runs the task and returns what `read` makes of its result, which is gone afterwards.

        Args:
            pixels: MediaPipe takes a copy of them.
            read: called with the C structure.
            clock: the timestamp in ms of a call that has one.

        Raises:
            Exception: the graph failed.
        """
        picture, result = self._picture(pixels), self._result_type()
        try:
            self._checked(self._call, self._handle, picture, None, *clock, ctypes.byref(result))
        finally:
            self._lib.MpImageFree(picture)
        try:
            return read(result)
        finally:
            self._close_result(ctypes.byref(result))

    def _picture(self, pixels: Rgb) -> ctypes.c_void_p:
        pixels = np.ascontiguousarray(pixels)
        height, width = pixels.shape[:2]
        picture = ctypes.c_void_p()
        self._checked(
            self._lib.MpImageCreateFromUint8Data,
            *(mp.ImageFormat.SRGB, width, height),
            *(ctypes.byref(ctypes.c_uint8.from_address(pixels.ctypes.data)), pixels.size),
            ctypes.byref(picture),
        )
        return picture

    def _checked(self, function: Any, *arguments: Any) -> None:
        error = ctypes.c_char_p()
        status = function(*arguments, ctypes.byref(error))
        try:
            handle_status(status, error)
        finally:
            if error.value is not None:
                self._lib.MpErrorFree(error)
