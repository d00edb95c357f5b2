"""Checks of request fields that several handlers share."""

from __future__ import annotations

from collections.abc import Sequence

from ml import transformers_pb2 as pb
from shared.errors import InputTooLargeError, InvalidArgumentError, MissingFieldError


def check_sizes(texts: Sequence[str], field: str, limit: int, *, empty: bool = False) -> None:
    """Refuses empty texts (unless `empty`) and more than `limit` bytes of text in total.

    Raises:
        MissingFieldError, InputTooLargeError: with the field or the limit.
    """
    if not empty and not all(texts):
        raise MissingFieldError(f"{field} is empty", field=field)
    size = sum(len(text.encode()) for text in texts)
    if size > limit:
        raise InputTooLargeError(
            f"{field} has {size} bytes; the limit is {limit}", metadata={"limit": str(limit)}
        )


def refuse_media(owner: pb.TextRequest | pb.ChatMessage, pipeline: str, prefix: str = "") -> None:
    """Refuses images and sounds, for models that take only text.

    Raises:
        InvalidArgumentError: there are images or sounds.
    """
    for name, given in (("images", owner.images), ("audio", owner.audio)):
        if given:
            raise InvalidArgumentError(
                f"{prefix}{name} is set, but a {pipeline} model takes only text; load one that "
                "takes images or sounds, such as visual-language",
                field=f"{prefix}{name}",
            )
