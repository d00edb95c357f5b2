"""Faces, hands, poses and masks with MediaPipe and LiteRT."""
