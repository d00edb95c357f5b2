"""One live stream: its order, its back-pressure and its task instance."""
