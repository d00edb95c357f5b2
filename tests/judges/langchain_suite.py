"""LangChain's standard tests of chat models and embeddings, with langchain-openai.

Features that the model's answers would need are switched off by the suite's own properties; the
reasons are beside them.
"""

from __future__ import annotations

import os
from typing import Any

from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langchain_tests.integration_tests import ChatModelIntegrationTests, EmbeddingsIntegrationTests


class TestChat(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[ChatOpenAI]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "model": os.environ["CHAT"],
            "base_url": os.environ["OPENAI_BASE_URL"],
            "api_key": "none",
            "max_tokens": 16,
            "max_retries": 0,
            "stream_usage": True,
        }

    # The answers that are written down call no tools with sensible arguments, and are no JSON.
    has_tool_calling = False
    has_structured_output = False
    # The model sees no pictures and hears no sounds.
    supports_image_inputs = False
    supports_audio_inputs = False


class TestEmbeddings(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[OpenAIEmbeddings]:
        return OpenAIEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {
            "model": os.environ["EMBEDDER"],
            "base_url": os.environ["OPENAI_BASE_URL"],
            "api_key": "none",
            # Else it sends token ids of OpenAI's own vocabulary, which is another one.
            "check_embedding_ctx_length": False,
        }
