"""Log-probabilities of tokens, as OpenAI writes them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ml import transformers_pb2 as pb

# OpenAI's own number for a token that is all but impossible; JSON has no infinity.
_LEAST = -9999.0


def logprobs_of(tokens: Iterable[pb.TokenLogprob]) -> dict[str, Any]:
    """Those of the tokens of an answer."""
    content = [
        _token(token) | {"top_logprobs": [_token(each) for each in token.top]} for token in tokens
    ]
    return {"content": content, "refusal": None}


def _token(token: pb.TokenLogprob) -> dict[str, Any]:
    return {
        "token": token.text,
        "logprob": max(token.logprob, _LEAST),
        "bytes": list(token.utf8) if token.utf8 else None,
    }
