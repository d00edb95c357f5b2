"""What requests carry beside text: pictures and sounds as base64, and lists of parts."""

from __future__ import annotations

import base64
import binascii
import re

from ml import transformers_pb2 as pb
from shared.errors import InvalidArgumentError

_DATA_URL = re.compile(r"data:(?P<type>[\w.+-]*/?[\w.+-]*)(?:;[\w.=+-]+)*;base64,", re.IGNORECASE)


def decoded(text: str, field: str) -> bytes:
    """The bytes of a base64 text.

    Raises:
        InvalidArgumentError: it is not base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidArgumentError(f"{field} is not base64", field=field) from None


def image(url: str, field: str) -> pb.ImageData:
    """A picture, given as a data URL.

    Raises:
        InvalidArgumentError: it is another address, which is never fetched, or not base64.
    """
    found = _DATA_URL.match(url[:200])
    if not found:
        raise InvalidArgumentError(
            f"{field} must be a data URL with base64; other addresses are not fetched", field=field
        )
    return pb.ImageData(data=decoded(url[found.end() :], field))
