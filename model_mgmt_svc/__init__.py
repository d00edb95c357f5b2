"""The control plane: loads and unloads models, and keeps and streams their files."""
