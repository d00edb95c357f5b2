"""Makes the folder of a case: a tiny model of its architecture, and what goes with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as t
from transformers.models.auto import modeling_auto as auto

from shared import pipelines
from tests.architectures import media, parts
from tests.architectures.configs import BOS, EOS, LABELS, PAD, tiny_config
from tests.architectures.mappings import Case
from tests.support import tiny_models

# Parameters of a tiny model; one that is larger is not tiny.
MAX_PARAMETERS = 20_000_000
ENTAILMENT = ("contradiction", "neutral", "entailment")

_LABELLED_IMAGES = (
    pipelines.IMAGE_CLASSIFICATION.name,
    pipelines.OBJECT_DETECTION.name,
    pipelines.IMAGE_SEGMENTATION.name,
)


class NotBuiltError(Exception):
    """This test makes no such model; the message says why."""


def build(case: Case, folder: Path) -> None:
    """Makes the model of a case in a folder.

    Raises:
        NotBuiltError: the test cannot, which says nothing of the services.
    """
    if name := _OWN.get(case.model_type) if case.pipeline == pipelines.VISUAL_LANGUAGE.name else "":
        tiny_models.build(name, folder)
        return
    try:
        model = _model(case)
    except NotBuiltError:
        raise
    except Exception as error:  # configurations fail in ways of their own
        raise NotBuiltError(f"{type(error).__name__}: {_first_line(error)}") from error
    parts.strengthen(model)
    if model.can_generate():
        model.generation_config = t.GenerationConfig(
            bos_token_id=BOS,
            eos_token_id=EOS,
            pad_token_id=PAD,
            decoder_start_token_id=EOS if model.config.is_encoder_decoder else None,
        )
    model.save_pretrained(folder)
    try:
        _PARTS.get(case.pipeline, _tokenizer)(case, folder)
    except Exception as error:  # processors fail in ways of their own
        raise NotBuiltError(f"{type(error).__name__}: {_first_line(error)}") from error


def _tokenizer(case: Case, folder: Path) -> None:
    around = case.pipeline != pipelines.TEXT_GENERATION.name
    parts.tokenizer(around=around).save_pretrained(folder)


def _images(case: Case, folder: Path) -> None:
    media.image_processor(case.model_type).save_pretrained(folder)


def _texts_and_images(case: Case, folder: Path) -> None:
    media.save_dual(folder, case.model_type)


def _captions(case: Case, folder: Path) -> None:
    images = media.image_processor(case.model_type)
    tokenizer = parts.tokenizer(around=False)
    media.processor(case.model_type, image_processor=images, tokenizer=tokenizer).save_pretrained(
        folder
    )


def _sounds(case: Case, folder: Path) -> None:
    if case.model_type in auto.MODEL_FOR_CTC_MAPPING_NAMES:
        media.save_letters(folder, case.model_type)
        return
    extractor = media.feature_extractor(case.model_type)
    tokenizer = parts.tokenizer(around=False)
    media.processor(
        case.model_type, feature_extractor=extractor, tokenizer=tokenizer
    ).save_pretrained(folder)


_PARTS = {
    pipelines.IMAGE_CLASSIFICATION.name: _images,
    pipelines.OBJECT_DETECTION.name: _images,
    pipelines.IMAGE_SEGMENTATION.name: _images,
    pipelines.DEPTH_ESTIMATION.name: _images,
    pipelines.IMAGE_FEATURE_EXTRACTION.name: _images,
    pipelines.IMAGE_TO_IMAGE.name: _images,
    pipelines.CLIP.name: _texts_and_images,
    pipelines.SPEECH_RECOGNITION.name: _sounds,
    pipelines.IMAGE_TO_TEXT.name: _captions,
    pipelines.VISUAL_LANGUAGE.name: _captions,
}


# Models with the tokens of images that their processors want, by model type.
_OWN = {
    "gemma3": "gemma3",
    "idefics2": "idefics2",
    "idefics3": "idefics3",
    "internvl": "internvl",
    "llava": "llava-chat",
    "llava_next": "llava-next",
    "llava_onevision": "llava-onevision",
    "mistral3": "mistral3",
    "mllama": "mllama",
    "paligemma": "paligemma",
    "pixtral": "pixtral",
    "qwen2_5_vl": "qwen2.5-vl",
    "qwen2_vl": "qwen2-vl",
    "qwen3_vl": "qwen3-vl",
    "smolvlm": "smolvlm",
    "vipllava": "vipllava",
}


def _model(case: Case) -> Any:
    torch.manual_seed(0)
    labels = {}
    if case.pipeline in (pipelines.TEXT_CLASSIFICATION.name, pipelines.TOKEN_CLASSIFICATION.name):
        labels = {"num_labels": LABELS}
    if case.pipeline == pipelines.RERANKING.name:
        labels = {"num_labels": 1}
    if case.pipeline in _LABELLED_IMAGES:
        labels = {"num_labels": LABELS}
    if case.model_type in auto.MODEL_FOR_CTC_MAPPING_NAMES:
        labels = {"vocab_size": media.letters()}
    config = tiny_config(case.model_type, **labels)
    model_class = getattr(t, case.architecture)
    if model_class.config_class is not type(config):
        model_class = _whole(case, type(config))
    with torch.device("meta"):
        size = sum(each.numel() for each in model_class(config).parameters())
    if size > MAX_PARAMETERS:
        raise NotBuiltError(f"it has {size / 1e6:.0f} million parameters at its smallest")
    return model_class(config).eval()


def _whole(case: Case, config_class: Any) -> Any:
    """The class of a model with more parts than the pipeline's, as such models are published."""
    name = None
    if case.pipeline in (pipelines.TEXT_GENERATION.name, pipelines.FEATURE_EXTRACTION.name):
        name = auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES.get(case.model_type)
    found = getattr(t, name or "", None)
    if found is None or found.config_class is not config_class:
        raise NotBuiltError(f"{case.architecture} takes another configuration")
    return found


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[:200]
