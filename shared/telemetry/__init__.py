"""Logs, traces and process metrics."""
