"""The control plane: loads and unloads models, and caches and streams their files."""
