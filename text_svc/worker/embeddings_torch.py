"""An encoder on torch, for what OpenVINO does not take and for CUDA."""

from __future__ import annotations

import torch

from text_svc.worker.embeddings_encoder import Done, Ids
from text_svc.worker.embeddings_module import SentenceEncoder


class TorchEncoder:
    """See `Encoder`; one batch at once, in the thread that starts it."""

    streams = 1

    def __init__(self, module: SentenceEncoder) -> None:
        self._module = module
        self._device = module.transformer.device
        one = torch.ones((1, 1), dtype=torch.int64, device=self._device)
        with torch.inference_mode():
            self.dimensions = int(module(one, one).shape[1])

    def wait_idle(self) -> None:
        """Nothing runs between two calls of `start`."""

    def start(self, input_ids: Ids, attention_mask: Ids, done: Done) -> None:
        ids = torch.from_numpy(input_ids).to(self._device)
        mask = torch.from_numpy(attention_mask).to(self._device)
        with torch.inference_mode():
            done(self._module(ids, mask).float().cpu().numpy())

    def close(self) -> None:
        """Nothing to wait for."""
