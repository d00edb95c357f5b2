"""Converts a decoder of safetensors to an OpenVINO model for continuous batching."""

from __future__ import annotations

import itertools
import json
import logging
from pathlib import Path
from typing import Any

import nncf
import openvino
import torch
from openvino_genai import ContinuousBatchingPipeline, GenerationConfig, SchedulerConfig
from openvino_tokenizers import convert_tokenizer
from optimum.exporters.openvino import export_from_model
from optimum.exporters.tasks import TasksManager
from transformers import AutoConfig

from text_svc.convert.refused import RefusedError, refusal
from text_svc.convert.spec import Weights
from text_svc.formats.json_files import GENERATION_CONFIG
from text_svc.formats.manifest import DETOKENIZER, MODEL, TOKENIZER, Manifest
from text_svc.torch_models.causal_lm import load_causal_lm
from text_svc.torch_models.decoding_rules import decoding_rules
from text_svc.torch_models.pretrained import context_length, end_tokens_of
from text_svc.torch_models.tokenizer import load_tokenizer

log = logging.getLogger(__name__)

TASK = "text-generation-with-past"
# The check of a conversion: prompts of tokens that every vocabulary has, and greedy tokens. They
# run together and differ in length, as calls do: a graph with wrong positions is right for some.
_TOKENS = (1, 2, 3, 5, 8, 13, 21, 34, 4, 9, 16, 25, 36, 7, 11)
CHECK_LENGTHS = (8, 5, 11, 70)
CHECK_TOKENS = 16
# Where the original's best two logits are closer than this, either token is right.
CHECK_MARGIN = 0.01
# The end token of a model that has none: an id above those of all vocabularies.
NO_TOKEN = 1 << 30


def convert(source: Path, target: Path, weights: Weights) -> Manifest:
    """Converts a decoder-only model and checks the result against the original.

    Args:
        source: a folder of config, tokenizer and safetensors.
        target: an existing empty folder.
        weights: "float" keeps their precision, "int8" compresses them.

    Raises:
        RefusedError: this model must be served by transformers.
        OSError, ValueError: the model itself is broken.
    """
    config = AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    _check_architecture(config)
    model = load_causal_lm(source, None)
    if rules := decoding_rules(model.generation_config):
        raise RefusedError(f"openvino does not follow its generation config: {', '.join(rules)}")
    tokenizer = load_tokenizer(source)
    end_tokens = end_tokens_of(model, tokenizer)
    try:
        export_from_model(
            model, target, task=TASK, stateful=True, patch_16bit_model=model.dtype != torch.float32
        )
        _write_end_tokens(target, end_tokens)
        core = openvino.Core()
        converted = core.read_model(target / MODEL)
        width = _cache_width(converted)
        if weights == "int8":
            converted = nncf.compress_weights(converted, mode=nncf.CompressWeightsMode.INT8_ASYM)
            _replace(converted, target)
        del converted
        if weights == "float" and model.dtype != torch.float32:
            model = load_causal_lm(source, torch.float32)  # the first was patched for tracing
        _check(model, target, exact=weights == "float")
    except Exception as error:
        log.exception("the model cannot be converted")
        raise refusal(error) from None
    tokenizer.save_pretrained(target)
    _convert_tokenizer(tokenizer, target)
    return Manifest(
        context=context_length(model),
        cache_width=width,
        end_tokens=end_tokens,
        weight_bytes=(target / MODEL).with_suffix(".bin").stat().st_size,
    )


def _check_architecture(config: Any) -> None:
    kind = config.model_type
    if config.is_encoder_decoder:
        raise RefusedError(f"{kind} is an encoder-decoder architecture")
    try:
        tasks = TasksManager.get_supported_tasks_for_model_type(
            kind, exporter="openvino", library_name="transformers"
        )
    except KeyError:
        tasks = {}
    if TASK not in tasks:
        raise RefusedError(f"{kind} has no exporter")


def _convert_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Writes the tokenizer as OpenVINO GenAI reads it.

    A model goes without where that cannot be: then it follows no form of answers.
    """
    try:
        models = convert_tokenizer(tokenizer, with_detokenizer=True, skip_special_tokens=True)
        for model, name in zip(models, (TOKENIZER, DETOKENIZER), strict=True):
            openvino.save_model(model, folder / name)
    except Exception as error:  # noqa: BLE001  # tokenizers fail in ways of their own
        log.warning("the tokenizer cannot be converted", extra={"why": str(error)[:300]})
        for name in (TOKENIZER, DETOKENIZER):
            for path in folder.glob(f"{Path(name).stem}.*"):
                path.unlink()


def _cache_width(model: Any) -> int:
    """Numbers that one token adds to the model's state: heads x head size of keys and values."""
    width = 0
    for variable in model.get_variables():
        shape = variable.info.data_shape  # (batch, heads, tokens, head size)
        if len(shape) != 4 or not (shape[1].is_static and shape[3].is_static):
            raise RefusedError("its state is not a cache of keys and values")
        width += shape[1].get_length() * shape[3].get_length()
    if not width:
        raise RefusedError("it has no cache of keys and values")
    return width


def _write_end_tokens(folder: Path, end_tokens: list[int]) -> None:
    """Writes the generation config that OpenVINO reads.

    NO_TOKEN stands for an end token that is missing: without one in the file OpenVINO assumes -1,
    and then refuses every prompt.
    """
    config = {"eos_token_id": end_tokens or NO_TOKEN}
    (folder / GENERATION_CONFIG).write_text(json.dumps(config))


def _replace(model: Any, folder: Path) -> None:
    """Saves a model over the file that it was read from, which stays mapped until then."""
    openvino.save_model(model, folder / "new.xml", compress_to_fp16=False)
    for suffix in (".xml", ".bin"):
        (folder / f"new{suffix}").replace((folder / MODEL).with_suffix(suffix))


def _check(model: Any, folder: Path, exact: bool) -> None:
    """Runs the result once; if `exact`, its greedy tokens must be those of torch.

    Compressed weights are not exact: their tokens may differ.

    Raises:
        RefusedError: they differ.
    """
    tokens = itertools.cycle(token % model.config.vocab_size for token in _TOKENS)
    room = max(context_length(model) - CHECK_TOKENS, 1)
    prompts = [list(itertools.islice(tokens, min(n, room))) for n in CHECK_LENGTHS]
    answers = _greedy(folder, prompts)
    if not exact:
        return
    for prompt, answer in zip(prompts, answers, strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + answer[:-1]])).logits[0, len(prompt) - 1 :]
        for index, (token, scores) in enumerate(zip(answer, logits, strict=True)):
            best, second = scores.topk(2).values.tolist()
            if best - second < CHECK_MARGIN:
                break
            if token != int(scores.argmax()):
                raise RefusedError(
                    f"the converted model's token {index} after a prompt of {len(prompt)} "
                    "differs from the original's"
                )


def _greedy(folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    scheduler = SchedulerConfig()
    scheduler.num_kv_blocks = 16
    # The graph is checked, so its cache is exact too; by default it keeps half-precision numbers.
    precision = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    pipeline = ContinuousBatchingPipeline(folder, scheduler, "CPU", precision)
    config = GenerationConfig()
    config.max_new_tokens, config.ignore_eos = CHECK_TOKENS, True
    handles = [
        pipeline.add_request(number, openvino.Tensor(torch.tensor([prompt]).numpy()), config)
        for number, prompt in enumerate(prompts)
    ]
    while pipeline.has_non_finished_requests():
        pipeline.step()
    return [list(handle.read_all()[0].generated_ids) for handle in handles]
