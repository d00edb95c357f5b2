"""Child processes: a model's own, and how one is started."""
