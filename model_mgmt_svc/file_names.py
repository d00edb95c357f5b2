"""The names that the one large file of a LiteRT repository may have; the wire has no listing.

They are the spellings of google's and litert-community's repositories, such as
gemma-3n-E4B-it-int4.litertlm of google/gemma-3n-E4B-it-litert-lm.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from shared.files.client import ModelFiles
from shared.model_ids import ModelId, split_revision

LITERTLM = ".litertlm"
TFLITE = ".tflite"

# What a repository's name may have at its end that the file's has not.
_ENDS = re.compile(r"[-_.](litert[-_]?lm|lite[-_]?rt|tflite)$", re.IGNORECASE)
# What a file's name may have at its end that the repository's has not, the likeliest first.
_VARIANTS = {
    LITERTLM: (
        *("", "-int4", "-int8", "_q8", "_q4", "-q8", "-q4"),
        *("_multi-prefill-seq_q8_ekv4096", "_multi-prefill-seq_q4_ekv4096"),
        *("_multi-prefill-seq_q8_ekv1280", "_q8_ekv4096", "_q4_ekv4096", "_q8_ekv1280"),
    ),
    TFLITE: (
        *("", "_float32", "-float32", "_fp32", "_float16", "-float16", "_fp16"),
        *("_int8", "-int8", "_uint8", "_quant", "_dynamic_range_quant", "_w8a8"),
    ),
}


def speaks_of_litert(model_id: ModelId) -> bool:
    """Whether a repository's name says that its model is for LiteRT."""
    name = split_revision(model_id)[0].rpartition("/")[2].lower()
    return any(word in name for word in ("litert", "lite-rt", "tflite"))


def usual_names(model_id: ModelId, suffix: str) -> list[str]:
    """The names to try for a model's file, in this order.

    Args:
        model_id: of the model.
        suffix: LITERTLM or TFLITE.
    """
    return list(dict.fromkeys(_names(split_revision(model_id)[0], suffix)))


def _names(model_id: str, suffix: str) -> Iterator[str]:
    name = model_id.rpartition("/")[2]
    bases = dict.fromkeys((_ENDS.sub("", name), name))
    for variant in _VARIANTS[suffix]:
        for base in bases:
            yield f"{base}{variant}{suffix}"
            yield f"{base.lower()}{variant}{suffix}"
    yield f"model{suffix}"


async def find_file(files: ModelFiles, model_id: ModelId, suffix: str) -> str:
    """The first of the usual names that the provider has; empty if it has none of them.

    Raises:
        As `ModelFiles.has`.
    """
    for name in usual_names(model_id, suffix):
        if await files.has(model_id, name):
            return name
    return ""
