"""The CUDA devices of this machine, as their driver tells without torch."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def cuda_memory() -> Mapping[str, int]:
    """Bytes of each device that torch can use, by its name there, such as "cuda:0".

    Empty where torch is no CUDA build, or there is no driver.
    """
    try:
        if version("torch").endswith("+cpu"):
            return {}
        driver = ctypes.CDLL("libcuda.so.1")
    except (OSError, PackageNotFoundError):
        return {}
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return {}
    found = {}
    for index in range(count.value):
        device, size = ctypes.c_int(), ctypes.c_size_t()
        if not driver.cuDeviceGet(ctypes.byref(device), index) and not driver.cuDeviceTotalMem_v2(
            ctypes.byref(size), device
        ):
            found[f"cuda:{index}"] = size.value
    return found
