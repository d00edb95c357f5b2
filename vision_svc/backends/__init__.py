"""The libraries that detect: MediaPipe's tasks and LiteRT, and what they answer."""
