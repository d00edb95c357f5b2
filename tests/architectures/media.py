"""What goes with tiny models of images and sounds: processors, a picture and a sound."""

from __future__ import annotations

import io
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import transformers as t
from PIL import Image
from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING_NAMES
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from tests.architectures import parts
from tests.architectures.configs import IMAGE

RATE = 16_000
_LETTERS = "abcdefghijklmnopqrstuvwxyz'"


def picture() -> Image.Image:
    """A picture with edges and colours."""
    chance = np.random.default_rng(0)
    pixels = chance.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((IMAGE + 16, IMAGE + 8), Image.Resampling.NEAREST)


def png() -> bytes:
    """`picture` as a file."""
    made = io.BytesIO()
    picture().save(made, "png")
    return made.getvalue()


def sound() -> np.ndarray[Any, np.dtype[np.float32]]:
    """One second at RATE: two tones and noise."""
    times = np.arange(RATE) / RATE
    noise = np.random.default_rng(0).normal(0, 0.05, RATE)
    tones = 0.4 * np.sin(2 * np.pi * 440 * times) + 0.3 * np.sin(2 * np.pi * 1200 * times**2)
    wave: np.ndarray[Any, np.dtype[np.float32]] = (tones + noise).astype(np.float32)
    return wave


def image_processor(model_type: str) -> Any:
    """The processor of a model type's pictures on Pillow, for pictures of IMAGE pixels.

    Raises:
        LookupError: there is none.
    """
    name = (IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type) or {}).get("pil")
    if not name:
        raise LookupError("it has no image processor on Pillow")
    public = getattr(t, name)
    kind = getattr(import_module(public.__module__), public.__name__)
    default, sizes = kind(), {}
    for attribute in ("size", "crop_size"):
        size = getattr(default, attribute, None)
        if size is not None:
            sizes[attribute] = {key: IMAGE for key, value in dict(size).items() if value}
    return kind(**sizes)


def feature_extractor(model_type: str) -> Any:
    """What reads a model type's sounds.

    Raises:
        LookupError: there is none.
    """
    name = FEATURE_EXTRACTOR_MAPPING_NAMES.get(model_type)
    if not name:
        raise LookupError("it has no feature extractor")
    return getattr(t, name)()


def processor(model_type: str, **made: Any) -> Any:
    """The processor of a model type, of parts that are given.

    Raises:
        LookupError: there is none.
    """
    name = PROCESSOR_MAPPING_NAMES.get(model_type)
    if not name:
        raise LookupError("it has no processor")
    kind = getattr(t, name)
    wanted = kind.get_attributes()
    if lacking := set(wanted) - made.keys():
        raise LookupError(f"its processor wants a {', a '.join(sorted(lacking))}")
    return kind(**{part: made[part] for part in wanted})


def save_letters(folder: Path, model_type: str) -> None:
    """The processor of a model that hears letters (CTC)."""
    vocabulary = {letter: number for number, letter in enumerate(["<pad>", "|", *_LETTERS])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    tokenizer = t.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), unk_token="<pad>")
    extractor = feature_extractor(model_type)
    t.Wav2Vec2Processor(feature_extractor=extractor, tokenizer=tokenizer).save_pretrained(folder)


def letters() -> int:
    """The size of that vocabulary."""
    return len(_LETTERS) + 2


def save_dual(folder: Path, model_type: str) -> None:
    """The processor of pictures and texts."""
    images = image_processor(model_type)
    processor(
        model_type, image_processor=images, tokenizer=parts.tokenizer(around=True)
    ).save_pretrained(folder)
