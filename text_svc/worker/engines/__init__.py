"""What generates tokens: `base` is the interface, the other modules are engines."""
