"""How texts of different length share a batch, so that each has the logits that it has alone.

Models differ: most want padding behind a text, XLNet before it, and some cannot be padded at all.
A decoder takes a text's last token for the last one that is not the padding token of its config;
where the config names none, it reads one text at a time. And a tokenizer has that padding token, or
another one, or none. So what works is tried when a model is loaded.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch

from shared.errors import InvalidModelError
from text_svc.torch_models.own_state import length_dependent_rope

log = logging.getLogger(__name__)

# The tokenizer's lists of one text, by their names.
Encoded = Mapping[str, Sequence[int]]
Forward = Callable[[dict[str, torch.Tensor]], torch.Tensor]
Side = Literal["right", "left"]

# Largest difference of two logits, relative to the largest logit, by dtype; other dtypes are
# half-precision ones.
MAX_DIFFERENCE = {torch.float32: 1e-3}
MAX_HALF_DIFFERENCE = 0.05


class PaddedModel:
    """A model that scores texts, with the padding that it takes.

    Args:
        model: on torch.
        forward: its logits of a batch, shape (texts, labels).
        token_type: the token type of padding.
        samples: texts of different length, to try the padding with.

    Raises:
        InvalidModelError: the model does not give each sample a finite number for each label.
    """

    def __init__(
        self, model: Any, forward: Forward, token_type: int, samples: Sequence[Encoded]
    ) -> None:
        self._configs = [model.config, model.config.get_text_config()]
        self._forward = forward
        self._token_type = token_type
        # CANINE reads code points and has no vocabulary.
        self._vocabulary: int = getattr(self._configs[1], "vocab_size", 1 << 20)
        self._takes = inspect.signature(model.forward).parameters.keys()
        own: int | None = self._configs[1].pad_token_id
        self._pad = own if own is not None and 0 <= own < self._vocabulary else None
        # None: texts are read one by one.
        self._side: Side | None = None
        expected = self._alone(samples)
        _check(expected, len(samples), model.config.num_labels)
        if not length_dependent_rope(model):
            self._side = self._side_that_works(samples, expected, model.dtype)

    def logits(self, texts: Sequence[Encoded]) -> torch.Tensor:
        """Logits of texts, float32 on the CPU, shape (texts, labels)."""
        pad = self._pad_for(texts)
        if self._side is None or pad is None or len(texts) == 1:
            return self._alone(texts)
        return self._together(texts, pad, self._side)

    def _side_that_works(
        self, samples: Sequence[Encoded], expected: torch.Tensor, dtype: torch.dtype
    ) -> Side | None:
        limit = MAX_DIFFERENCE.get(dtype, MAX_HALF_DIFFERENCE) * float(expected.abs().max())
        sides: tuple[Side, ...] = ("right", "left")
        for side in sides:
            pad = self._pad_for(samples)
            try:
                together = self._together(samples, 0 if pad is None else pad, side)
            except Exception:  # architectures fail in ways of their own
                log.info("a padded batch fails", extra={"side": side}, exc_info=True)
                continue
            if float((together - expected).abs().max()) <= limit:
                return side
        log.info("texts of this model do not share a batch")
        return None

    def _pad_for(self, texts: Sequence[Encoded]) -> int | None:
        """The token to pad texts with; None if there is none for them.

        If the model has none, it is any token that is in none of the texts.
        """
        if self._pad is not None:
            return self._pad
        used = {token for text in texts for token in text["input_ids"]}
        return next((token for token in range(self._vocabulary) if token not in used), None)

    def _alone(self, texts: Sequence[Encoded]) -> torch.Tensor:
        return torch.cat([self._run([text], 0, "right") for text in texts])

    def _together(self, texts: Sequence[Encoded], pad: int, side: Side) -> torch.Tensor:
        if self._pad is not None:
            return self._run(texts, pad, side)
        with self._pad_token(pad):
            return self._run(texts, pad, side)

    @contextmanager
    def _pad_token(self, pad: int) -> Iterator[None]:
        """Sets the padding token by which the model finds the ends of texts."""
        before = [config.pad_token_id for config in self._configs]
        for config in self._configs:
            config.pad_token_id = pad
        try:
            yield
        finally:
            for config, own in zip(self._configs, before, strict=True):
                config.pad_token_id = own

    def _run(self, texts: Sequence[Encoded], pad: int, side: Side) -> torch.Tensor:
        width = max(len(text["input_ids"]) for text in texts)
        fills = {"input_ids": pad, "token_type_ids": self._token_type}

        def padded(values: Sequence[int], fill: int) -> list[int]:
            padding = [fill] * (width - len(values))
            return [*values, *padding] if side == "right" else [*padding, *values]

        inputs = {
            name: torch.tensor([padded(text[name], fills.get(name, 0)) for text in texts])
            for name in texts[0]
            if name in self._takes
        }
        if "attention_mask" in self._takes and "attention_mask" not in inputs:
            ones = [padded([1] * len(text["input_ids"]), 0) for text in texts]
            inputs["attention_mask"] = torch.tensor(ones)
        return self._forward(inputs).float().cpu()


def _check(logits: torch.Tensor, texts: int, labels: int) -> None:
    if logits.shape != (texts, labels):
        raise InvalidModelError(
            f"the model's output for {texts} texts has the shape {tuple(logits.shape)}, but its "
            f"config has {labels} labels"
        )
    if not logits.isfinite().all():
        raise InvalidModelError("the model's scores are not finite numbers")
