"""Health check of a container's server: `python -m http_svc.healthcheck`.

HTTP_PORT is its port. The exit code is 0 while it takes requests, and 1 otherwise.
"""

from __future__ import annotations

import http.client
import os
import sys

_TIMEOUT_SECONDS = 4.0


def is_serving(port: int) -> bool:
    """Whether the server on this machine takes requests."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(not is_serving(int(os.environ["HTTP_PORT"])))
