"""The cases: each architecture of transformers' auto classes, for the pipelines that are named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from transformers.models.auto import modeling_auto as auto

from shared import pipelines


@dataclass(frozen=True, order=True)
class Case:
    """One row of the table.

    Attributes:
        pipeline: its canonical name.
        model_type: of the configuration.
        architecture: the class that transformers' auto class gives for it.
        engine: "openvino" or "transformers".
    """

    pipeline: str
    architecture: str
    model_type: str
    engine: str

    @property
    def key(self) -> str:
        """A name for one case."""
        return f"{self.pipeline} {self.model_type} {self.engine}"


# Auto classes whose models read texts: their bases are tried as embedders.
_TEXT = (
    auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES,
    auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)


def cases() -> list[Case]:
    """All cases, in the order of the table."""
    return sorted(set(_cases()))


def _cases() -> Iterator[Case]:
    for pipeline, names in _mappings():
        engines = ["transformers"]
        if pipeline in (pipelines.TEXT_GENERATION, pipelines.FEATURE_EXTRACTION):
            engines.append("openvino")
        for model_type, architecture in names.items():
            name = architecture if isinstance(architecture, str) else architecture[0]
            for engine in engines:
                yield Case(pipeline.name, name, model_type, engine)


def _mappings() -> Iterator[tuple[pipelines.Pipeline, dict[str, str]]]:
    text_types = {name for mapping in _TEXT for name in mapping}
    bases = {
        name: architecture
        for name, architecture in auto.MODEL_MAPPING_NAMES.items()
        if name in text_types
    }
    yield pipelines.TEXT_GENERATION, auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    yield pipelines.FEATURE_EXTRACTION, bases
    yield pipelines.TEXT2TEXT, auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    for pipeline in (pipelines.TEXT_CLASSIFICATION, pipelines.RERANKING):
        yield pipeline, auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    yield pipelines.TOKEN_CLASSIFICATION, auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES
    yield pipelines.IMAGE_CLASSIFICATION, auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    yield pipelines.OBJECT_DETECTION, auto.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES
    yield pipelines.IMAGE_SEGMENTATION, auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
    yield pipelines.DEPTH_ESTIMATION, auto.MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES
    yield pipelines.IMAGE_FEATURE_EXTRACTION, auto.MODEL_FOR_IMAGE_MAPPING_NAMES
    yield pipelines.IMAGE_TO_IMAGE, auto.MODEL_FOR_IMAGE_TO_IMAGE_MAPPING_NAMES
    yield pipelines.CLIP, auto.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES
    speech = auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES | auto.MODEL_FOR_CTC_MAPPING_NAMES
    yield pipelines.SPEECH_RECOGNITION, speech
    yield pipelines.TEXT_TO_SPEECH, auto.MODEL_FOR_TEXT_TO_WAVEFORM_MAPPING_NAMES
    yield pipelines.IMAGE_TO_TEXT, auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    yield pipelines.VISUAL_LANGUAGE, auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
