"""What the service knows of models: which are loaded, how, and what they cost."""
