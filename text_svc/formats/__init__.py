"""What folders on the disk say of a model, read without torch."""
