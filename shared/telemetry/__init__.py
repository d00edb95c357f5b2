"""What a process says of itself: log lines, traces and its own figures."""
