"""Text generation, chat and embeddings with HuggingFace transformers."""
