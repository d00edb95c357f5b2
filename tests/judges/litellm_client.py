"""LiteLLM, as the proxy that others put in front of OpenAI's interface."""

from __future__ import annotations

import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import litellm
import pytest

CHAT, EMBEDDER, RANKER = sys.argv[1:]
BASE = os.environ["OPENAI_BASE_URL"]
HELLO = [{"role": "user", "content": "Say hello."}]
common = {"api_base": BASE, "api_key": "none"}

answer = litellm.completion(f"openai/{CHAT}", HELLO, max_tokens=8, **common)
assert answer.choices[0].message.content
chunks = list(litellm.completion(f"openai/{CHAT}", HELLO, max_tokens=8, stream=True, **common))
assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
vectors = litellm.embedding(f"openai/{EMBEDDER}", ["a cat"], encoding_format="float", **common)
assert vectors.data[0]["embedding"]
ranked = litellm.rerank(
    model=f"cohere/{RANKER}",
    query="What is a cat?",
    documents=["A cat is an animal.", "Paris is in France."],
    top_n=1,
    api_base=BASE.removesuffix("/v1") + "/v1/rerank",
    api_key="none",
)
assert ranked.results[0]["index"] == 0
with pytest.raises(litellm.NotFoundError):
    litellm.completion("openai/no/no", HELLO, max_retries=0, **common)
print("passed")
