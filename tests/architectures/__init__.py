"""Every architecture that transformers can load, tiny, against transformers called directly."""

import os

# Set before anything imports torch: threads that spin on shared cores make it much slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
