"""Converts a sentence encoder to one OpenVINO graph: transformer, pooling, normalisation."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino as ov
import torch
from tokenizers import Tokenizer

from text_svc.convert.calibration import calibration_texts, check_texts
from text_svc.convert.refused import RefusedError, refusal
from text_svc.convert.spec import Weights
from text_svc.convert.traceable import traceable_masks
from text_svc.formats.json_files import TOKENIZER
from text_svc.formats.manifest import MODEL, Manifest
from text_svc.formats.recipe import read_recipe
from text_svc.torch_models.padding import padding_changes
from text_svc.torch_models.sentence_encoder import MaskKind, SentenceEncoder, load_module
from text_svc.torch_models.sentence_tokenizer import load_sentence_tokenizer

log = logging.getLogger(__name__)

# Largest difference of the graph from torch, relative to the largest number of the vectors.
MAX_DIFFERENCE = 1e-4
# Mean cosine of int8 and float32 vectors, over texts that the calibration has not seen.
MIN_COSINE = 0.99
# Shapes (texts, tokens) that a graph is traced with, and others that it is checked with. The last
# check is longer than the attention windows that encoders have, if the model reads that much.
_TRACED = (2, 7)
_CHECKED = ((1, 3), (3, 16), (2, 33))
_MAX_CHECKED_TOKENS = 1100

Inputs = dict[str, torch.Tensor]


def convert(source: Path, target: Path, weights: Weights) -> Manifest:
    """Converts an encoder and checks the result against the original.

    Args:
        source: a folder of config, tokenizer and safetensors.
        target: an existing empty folder.
        weights: "float" keeps their precision; "int8" makes weights and activations int8,
            calibrated on English text.

    Raises:
        RefusedError: this model must be served by transformers.
        OSError, ValueError, ServiceError: the model itself is broken.
    """
    recipe = read_recipe(source)
    module = load_module(source, recipe, dtype=torch.float32)
    tokens = load_sentence_tokenizer(source, recipe, module)
    try:
        if padding_changes(module):
            raise RefusedError("padding changes its vectors")
        graph = _traced(module, tokens.max_tokens)
        if weights == "int8":
            graph = _quantised(graph, tokens.tokenizer)
    except Exception as error:
        log.exception("the model cannot be converted")
        raise refusal(error) from None
    ov.save_model(graph, target / MODEL, compress_to_fp16=False)
    tokens.tokenizer.save(str(target / TOKENIZER))
    return Manifest(
        context=tokens.max_tokens,
        pad_token=tokens.pad_token,
        weight_bytes=(target / MODEL).with_suffix(".bin").stat().st_size,
    )


def _traced(module: SentenceEncoder, limit: int) -> ov.Model:
    """The graph, traced with the first way of masking that gives the original's numbers.

    Raises:
        RefusedError: none does.
    """
    failures: list[Exception] = []
    kinds: tuple[MaskKind, ...] = ("additive", "own")
    windows = "sliding_attention" in (getattr(module.transformer.config, "layer_types", None) or ())
    if windows or any(getattr(each, "is_causal", False) for each in module.modules()):
        kinds = ("own", "additive")
    for kind in kinds:
        try:
            graph = _trace(module, kind)
            _check(module, graph, limit)
        except Exception as error:
            log.info("tracing failed", extra={"mask": kind}, exc_info=True)
            failures.append(refusal(error))
            if not isinstance(failures[-1], RefusedError):
                raise
        else:
            return graph
    raise failures[0]


def _trace(module: SentenceEncoder, kind: MaskKind) -> ov.Model:
    module.mask_kind = kind
    shape = ov.PartialShape([-1, -1])
    try:
        with torch.inference_mode(), traceable_masks():
            return ov.convert_model(
                module,
                example_input=_random_inputs(module, _TRACED),
                input=[(name, shape, ov.Type.i64) for name in ("input_ids", "attention_mask")],
            )
    finally:
        module.mask_kind = "own"


def _check(module: SentenceEncoder, graph: ov.Model, limit: int) -> None:
    """Compares with the original on batches of other shapes, with padding."""
    compiled = ov.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for shape in (*_CHECKED, (2, min(limit, _MAX_CHECKED_TOKENS))):
        inputs = _random_inputs(module, shape)
        with torch.inference_mode():
            expected = module(**inputs).numpy()
        got = compiled({name: tensor.numpy() for name, tensor in inputs.items()})[0]
        difference = float(np.abs(got - expected).max() / np.abs(expected).max())
        if not difference <= MAX_DIFFERENCE:
            raise RefusedError(f"the converted model's vectors differ by {difference:.1e}")


def _random_inputs(module: SentenceEncoder, shape: tuple[int, int]) -> Inputs:
    """Random tokens; the first text fills the width, each further one is shorter."""
    texts, width = shape
    vocabulary = module.transformer.config.vocab_size
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, (texts, width), generator=generator)
    lengths = torch.tensor([max(1, width - 2 * index) for index in range(texts)])
    mask = (torch.arange(width) < lengths[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask}


def _quantised(graph: ov.Model, tokenizer: Tokenizer) -> ov.Model:
    calibration = calibration_texts()

    def inputs(text: str) -> dict[str, Any]:
        encoded = tokenizer.encode(text)
        named = {"input_ids": encoded.ids, "attention_mask": encoded.attention_mask}
        return {name: np.array([values], np.int64) for name, values in named.items()}

    quantised = nncf.quantize(
        graph.clone(),
        nncf.Dataset([inputs(text) for text in calibration]),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(calibration),
    )
    cosine = _mean_cosine(graph, quantised, map(inputs, check_texts()))
    log.info("quantised", extra={"cosine": cosine})
    if cosine < MIN_COSINE:
        raise RefusedError(
            f"int8 loses too much: the cosine to float32 is {cosine:.4f} on average, and at least "
            f"{MIN_COSINE} is required"
        )
    return quantised


def _mean_cosine(exact: ov.Model, other: ov.Model, inputs: Iterable[dict[str, Any]]) -> float:
    config = {"INFERENCE_PRECISION_HINT": "f32"}
    models = [ov.compile_model(model, "CPU", config) for model in (exact, other)]
    cosines = []
    for one in inputs:
        a, b = (model(one)[0][0] for model in models)
        cosines.append(float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))))
    return sum(cosines) / len(cosines)
