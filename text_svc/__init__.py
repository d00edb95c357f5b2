"""Text, speech and multimodal models, one process each, on OpenVINO or transformers."""
