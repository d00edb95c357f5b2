"""The tokenizer of a model alone: a text to tokens, and token ids to a text."""

from __future__ import annotations

import threading
from typing import Any

from ml import transformers_pb2 as pb
from shared.errors import OutOfRangeError
from text_svc.torch_models.pretrained import Pretrained
from text_svc.torch_models.tokenizer import load_tokenizer
from text_svc.worker.infer.base import InferPipeline
from text_svc.worker.infer.options import NoOptions


class TokenizerOptions(NoOptions):
    """Whether special tokens are added around a text, and left out of a decoded one."""

    add_special_tokens: bool = True
    skip_special_tokens: bool = False


class Tokenizer(InferPipeline[TokenizerOptions]):
    """Any tokenizer that transformers can read without code of the model's own."""

    takes = ("text", "token_ids")
    options = TokenizerOptions

    def read_processor(self, source: Pretrained) -> Any:
        return load_tokenizer(source.folder)

    def infer(
        self, request: pb.InferRequest, options: TokenizerOptions, cancelled: threading.Event
    ) -> pb.InferResponse:
        if request.WhichOneof("input") == "token_ids":
            return pb.InferResponse(text=self._decode(list(request.token_ids.ids), options))
        encoded = self.processor(
            request.text,
            add_special_tokens=options.add_special_tokens,
            return_offsets_mapping=self.processor.is_fast,
        )
        ids = encoded["input_ids"]
        offsets = encoded.get("offset_mapping") or [(0, 0)] * len(ids)
        tokens = self.processor.convert_ids_to_tokens(ids)
        return pb.InferResponse(
            tokens=[
                pb.TextToken(id=number, text=token, start=start, end=end)
                for number, token, (start, end) in zip(ids, tokens, offsets, strict=True)
            ],
        )

    def _decode(self, ids: list[int], options: TokenizerOptions) -> str:
        size = len(self.processor)
        if unknown := [number for number in ids if not 0 <= number < size]:
            raise OutOfRangeError(
                f"token id {unknown[0]} is not in the vocabulary of {size}", field="token_ids"
            )
        text: str = self.processor.decode(ids, skip_special_tokens=options.skip_special_tokens)
        return text
