"""A sentence encoder on torch, for CUDA and for models that OpenVINO does not support."""

from __future__ import annotations

import torch

from text_svc.formats.recipe import Recipe
from text_svc.processes.specs import WorkerSpec
from text_svc.torch_models.padding import padding_changes
from text_svc.torch_models.pretrained import (
    choose_device,
    choose_dtype,
    measure,
)
from text_svc.torch_models.sentence_encoder import (
    SentenceEncoder,
    load_module,
)
from text_svc.torch_models.sentence_tokenizer import load_sentence_tokenizer
from text_svc.worker.embeddings.encoder import (
    Done,
    Ids,
    LoadedEncoder,
)


class TorchEncoder:
    """An `Encoder` that runs one batch at a time, in the thread that starts it.

    Texts of a batch that differ in length run apart where padding changes the model's vectors.
    """

    streams = 1

    def __init__(self, module: SentenceEncoder) -> None:
        self._module = module
        self._device = module.transformer.device
        one = torch.ones((1, 1), dtype=torch.int64, device=self._device)
        with torch.inference_mode():
            self.dimensions = int(module(one, one).shape[1])
        self._pads = not padding_changes(module)

    def wait_idle(self) -> None:
        """Returns at once: `start` returns when its batch is done."""

    def start(self, input_ids: Ids, attention_mask: Ids, done: Done) -> None:
        ids = torch.from_numpy(input_ids).to(self._device)
        mask = torch.from_numpy(attention_mask).to(self._device)
        with torch.inference_mode():
            vectors = self._module(ids, mask) if self._pads else self._unpadded(ids, mask)
            done(vectors.cpu().numpy())

    def _unpadded(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        lengths = mask.sum(1)
        vectors = torch.empty(len(ids), self.dimensions, device=self._device)
        for length in lengths.unique().tolist():
            same = lengths == length
            vectors[same] = self._module(ids[same, :length], mask[same, :length])
        return vectors

    def close(self) -> None:
        """Does nothing: no batch runs."""


def load(spec: WorkerSpec, recipe: Recipe) -> LoadedEncoder:
    """Loads the model of a spec.

    Raises:
        ServiceError, OSError, ValueError: the model cannot be loaded.
    """
    device = choose_device(spec.options)
    dtype = choose_dtype(spec.options, device)
    module = load_module(spec.folder, recipe, dtype=dtype, device=device)
    tokens = load_sentence_tokenizer(spec.folder, recipe, module)
    return LoadedEncoder(
        TorchEncoder(module),
        tokens.tokenizer,
        tokens.max_tokens,
        tokens.pad_token,
        measure(module),
    )
