"""Detectors on MediaPipe's Tasks and on LiteRT, and the messages made of their results."""
