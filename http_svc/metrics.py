"""Prometheus metrics of http_svc."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

# 1 ms to 5 min: an embedding takes milliseconds, a long answer minutes.
_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0),
)

REQUESTS = Counter("http_requests", "HTTP requests answered, by status.", ["route", "code"])
SECONDS = Histogram(
    "http_request_seconds",
    "Time from the begin of a request to the end of its answer.",
    ["route"],
    buckets=_BUCKETS,
)
IN_FLIGHT = Gauge("http_requests_in_flight", "HTTP requests in progress.", ["route"])
GONE = Counter(
    "http_clients_gone", "Requests whose client left before the end of the answer.", ["route"]
)
BODY_BYTES = Gauge("http_body_bytes", "Bytes of bodies that are being received or answered.")
