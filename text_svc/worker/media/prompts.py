"""Prompts with images and sounds: parsed out of a request, checked, placed into the text.

A model marks the places of images and sounds in its prompt with tokens, such as "<image>". A
prompt that has these tokens itself is left as it is; otherwise the media come before the text, by
the model's chat template where there is one.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from ml import transformers_pb2 as pb
from shared.errors import InputTooLargeError, InvalidArgumentError, MissingFieldError
from text_svc.processes.specs import WorkerSpec
from text_svc.worker.cancel import raise_if_cancelled
from text_svc.worker.generation.generator import Prompt
from text_svc.worker.media.decode import Samples, decode_audio, decode_image
from text_svc.worker.model_thread import ModelThread

# A message as chat templates take it, and one of the parts of its content.
Turn = dict[str, Any]
Part = dict[str, str]

# Writes a conversation with the model's chat template: see `ChatTemplate.render_texts`.
Render = Callable[[list[Turn], list[str]], Awaitable[str]]


@dataclass(frozen=True)
class MediaTokens:
    """What stands for an image or a sound in a prompt; "" where the model has nothing for it."""

    image: str = ""
    audio: str = ""

    def count(self, text: str) -> tuple[int, int]:
        """The places of images and of sounds in a text."""
        return (
            text.count(self.image) if self.image else 0,
            text.count(self.audio) if self.audio else 0,
        )

    def split(self, text: str) -> list[Part]:
        """The text as parts of a chat message."""
        kinds = {
            token: kind for kind, token in (("image", self.image), ("audio", self.audio)) if token
        }
        pieces = re.split("(" + "|".join(map(re.escape, kinds)) + ")", text) if kinds else [text]
        return [
            {"type": kinds[piece]} if piece in kinds else {"type": "text", "text": piece}
            for piece in pieces
            if piece
        ]


class MediaModel(Protocol):
    """A model that takes images, sounds, or both.

    Attributes:
        media_tokens: of its processor.
        takes_images: whether it does.
    """

    media_tokens: MediaTokens
    takes_images: bool

    def encode(self, text: str, images: list[Image.Image], sounds: list[Samples]) -> dict[str, Any]:
        """Tensors for `generate`, on the model's device; "input_ids" has shape (1, tokens).

        Raises:
            InvalidArgumentError: the model's processor refuses them.
        """

    @property
    def audio_rate(self) -> int:
        """Samples a second of the sounds that it takes; 0 if it takes none."""

    @property
    def max_sound_seconds(self) -> float:
        """The longest sound that it takes."""


@dataclass(frozen=True)
class _Message:
    """A text and its media, as they came.

    Attributes:
        role: of the speaker.
        text: may have the model's media tokens.
        images: in the order of their places.
        audio: the same.
        prefix: what the names of its fields begin with, such as "messages[0].".
    """

    role: str
    text: str
    images: Sequence[pb.ImageData]
    audio: Sequence[pb.AudioData]
    prefix: str = ""

    @property
    def counts(self) -> tuple[int, int]:
        """Images and sounds."""
        return len(self.images), len(self.audio)


def _parse_text(request: pb.TextRequest) -> _Message:
    return _Message("user", request.prompt, request.images, request.audio)


def _parse_chat(messages: Sequence[pb.ChatMessage]) -> list[_Message]:
    return [
        _Message(one.role, one.content, one.images, one.audio, f"messages[{index}].")
        for index, one in enumerate(messages)
    ]


def _parse_infer(request: pb.InferRequest) -> _Message:
    images = [request.image] if request.HasField("image") else []
    audio = [request.audio] if request.HasField("audio") else []
    return _Message("user", request.prompt, images, audio)


class MediaPrompts:
    """Makes the prompts of one model.

    Args:
        model: its processor runs in one thread here, one call at a time.
        render: writes a conversation with the model's chat template, or raises; see
            `ChatTemplate.render_texts`.
        templated: whether the model has a chat template.
        spec: the limits.
    """

    def __init__(
        self,
        model: MediaModel,
        render: Render,
        templated: bool,
        spec: WorkerSpec,
    ) -> None:
        self._model = model
        self._tokens = model.media_tokens
        self._render = render
        self._templated = templated
        self._spec = spec
        self._thread = ModelThread(spec.max_waiting_calls, weights=spec.caller_weights)

    async def of_text(self, request: pb.TextRequest) -> Prompt:
        """The prompt of a GenerateText.

        Raises:
            InvalidArgumentError: the media do not fit the prompt or the model, or do not decode.
            InputTooLargeError: they are over a limit.
            QueueFullError: too many calls wait already.
        """
        message = _parse_text(request)
        self._check([message])
        return await self._read(await self._place(message), [message])

    async def of_chat(
        self, messages: Sequence[pb.ChatMessage], turns: Sequence[Turn], render: Render
    ) -> Prompt:
        """The prompt of a ChatCompletion.

        Args:
            messages: of the request.
            turns: the same as chat templates take them, without their media.
            render: writes them.

        Raises:
            As `of_text` and `render`.
        """
        parsed = _parse_chat(messages)
        self._check(parsed)
        placed = [
            turn | self._turn(one) | {"role": turn["role"]}
            for turn, one in zip(turns, parsed, strict=True)
        ]
        return await self._read(await render(placed, list(map(self._text, parsed))), parsed)

    async def place_in(self, request: pb.InferRequest) -> None:
        """Turns the text of an Infer into what the model reads. Raises what `of_text` does."""
        if request.WhichOneof("input") == "text":
            if self._templated:
                turn = {"role": "user", "content": _parts(request.text, 0, 0)}
                request.text = await self._render([turn], [request.text])
            return
        if not request.prompt:
            raise MissingFieldError("prompt is empty", field="prompt")
        message = _parse_infer(request)
        request.prompt = await self._place(message)
        self._check_counts(request.prompt, message.counts)

    def _check(self, messages: list[_Message]) -> None:
        """Refuses media that the model does not take, too many, or not those of the text."""
        count = sum(sum(message.counts) for message in messages)
        for name, able in (("images", self._model.takes_images), ("audio", self._takes_audio)):
            for message in messages:
                if getattr(message, name) and not able:
                    raise InvalidArgumentError(
                        f"model {self._spec.model_id} takes no {name}",
                        field=f"{message.prefix}{name}[0]",
                    )
        if count > self._spec.max_media:
            raise InputTooLargeError(
                f"the call has {count} images and sounds; the limit is {self._spec.max_media}",
                metadata={"limit": str(self._spec.max_media)},
            )
        for message in messages:
            if any(self._tokens.count(message.text)):
                self._check_counts(message.text, message.counts, message.prefix)

    @property
    def _takes_audio(self) -> bool:
        return self._model.audio_rate > 0

    def _check_counts(self, text: str, counts: tuple[int, int], prefix: str = "") -> None:
        """Refuses a text whose places are not as many as the media."""
        where = f"{prefix}content" if prefix else "the prompt"
        for name, kind, token, places, given in zip(
            ("images", "audio"),
            ("image", "sound"),
            (self._tokens.image, self._tokens.audio),
            self._tokens.count(text),
            counts,
            strict=True,
        ):
            if token and places != given:
                raise InvalidArgumentError(
                    f"{where} has {_counted(places, f'{token} placeholder')} but "
                    f"{_counted(given, kind)}",
                    field=f"{prefix}{name}",
                )

    async def _place(self, message: _Message) -> str:
        """A prompt with a place for each image and sound: its own, or new ones before the text."""
        images, sounds = message.counts
        if not (images or sounds) or any(self._tokens.count(message.text)):
            return message.text
        return await self._rendered([message]) if self._templated else self._text(message)

    async def _rendered(self, messages: list[_Message]) -> str:
        return await self._render(list(map(self._turn, messages)), list(map(self._text, messages)))

    def _text(self, message: _Message) -> str:
        """A message with a place for each image and sound: its own, or new ones before the text."""
        images, sounds = message.counts
        if any(self._tokens.count(message.text)):
            return message.text
        before = self._tokens.image * images + self._tokens.audio * sounds
        return f"{before}\n{message.text}" if before else message.text

    def _turn(self, message: _Message) -> Turn:
        if any(self._tokens.count(message.text)):
            return {"role": message.role, "content": self._tokens.split(message.text)}
        return {"role": message.role, "content": _parts(message.text, *message.counts)}

    async def _read(self, text: str, messages: list[_Message]) -> Prompt:
        """Decodes the media and encodes them with the text, in the thread of the processor."""
        if not text:
            raise MissingFieldError("the prompt is empty", field="prompt")
        images = _by_field("images", messages)
        audio = _by_field("audio", messages)
        self._check_counts(text, (len(images), len(audio)))  # a template may leave some out

        def read(cancelled: threading.Event) -> dict[str, Any]:
            pictures, sounds = self._decode_images(images), self._decode_sounds(audio)
            raise_if_cancelled(cancelled)
            return self._model.encode(text, pictures, sounds)

        inputs = await self._thread.run(read)
        return Prompt(inputs["input_ids"][0].tolist(), inputs)

    def _decode_images(self, images: dict[str, pb.ImageData]) -> list[Image.Image]:
        pictures: list[Image.Image] = []
        pixels, limit = 0, self._spec.max_image_pixels
        for field, image in images.items():
            pictures.append(decode_image(image.data, limit, field, before=pixels))
            pixels += pictures[-1].width * pictures[-1].height
        return pictures

    def _decode_sounds(self, audio: dict[str, pb.AudioData]) -> list[Samples]:
        sounds: list[Samples] = []
        seconds, limit = 0.0, self._spec.max_audio_seconds
        rate, longest = self._model.audio_rate, self._model.max_sound_seconds
        for field, one in audio.items():
            if longest <= limit - seconds:
                sounds.append(decode_audio(one, rate, longest, field))
            else:
                sounds.append(decode_audio(one, rate, limit, field, before=seconds))
            seconds += len(sounds[-1]) / rate
        return sounds


def _by_field(name: str, messages: list[_Message]) -> dict[str, Any]:
    """The media of one kind by the names of their fields, such as "messages[0].images[1]"."""
    return {
        f"{message.prefix}{name}[{index}]": one
        for message in messages
        for index, one in enumerate(getattr(message, name))
    }


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _parts(text: str, images: int, sounds: int) -> list[Part]:
    """Images and sounds, and then the text."""
    parts = [{"type": "image"}] * images + [{"type": "audio"}] * sounds
    return [*parts, {"type": "text", "text": text}] if text else parts
