"""Models read with torch, for a model's process and for conversions alike."""
