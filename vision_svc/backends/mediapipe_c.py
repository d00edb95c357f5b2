"""Calls MediaPipe's tasks through its C library, in the calling thread.

The Tasks API hands each call to a thread of its own and converts each result to Python objects,
point by point. Neither is needed here, since an instance has one user at a time.
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
    """One of the calls of a task, for one thread at a time.

    The signatures of the C functions are those that the Tasks API has set on the library.

    Args:
        task: the Tasks object, which keeps owning the graph.
        call: the part of the function's name after the task's, such as "DetectForVideo".
        result_type: the C structure of the result.
    """

    def __init__(self, task: Any, call: str, result_type: type[ctypes.Structure]) -> None:
        name = f"Mp{type(task).__name__}"
        self._lib = load_raw_library(image._CTYPES_SIGNATURES)  # noqa: SLF001
        self._handle = task._handle  # noqa: SLF001
        self._call = getattr(self._lib, name + call)
        self._close_result = getattr(self._lib, f"{name}CloseResult")
        self._result_type = result_type

    def run(self, pixels: Rgb, read: Callable[[Any], T], *clock: int) -> T:
        """Runs the task and returns `read(result)`; the result itself is freed afterwards.

        Args:
            pixels: the picture; MediaPipe copies it.
            read: called with the C structure of the result.
            clock: the timestamp in ms, for a call that takes one.

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
