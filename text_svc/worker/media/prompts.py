"""Prompts with images and sounds, put where the model's own marks stand."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL import Image

from ml import transformers_pb2 as pb
from shared.errors import (
    InputTooLargeError,
    InvalidArgumentError,
    MissingFieldError,
)
from text_svc.processes.launch import WorkerSpec
from text_svc.worker.cancel import raise_if_cancelled
from text_svc.worker.generation.generator import Prompt
from text_svc.worker.infer.service import ModelThread
from text_svc.worker.media.decode import (
    Samples,
    decode_audio,
    decode_image,
)

Part = dict[str, str]
Turn = dict[str, Any]


@dataclass(frozen=True)
class Marks:
    """What stands in a prompt for an image or a sound; empty where the model has no mark for it."""

    image: str = ""
    audio: str = ""

    def count(self, text: str) -> tuple[int, int]:
        """Marks of images and of sounds in a text."""
        return (
            text.count(self.image) if self.image else 0,
            text.count(self.audio) if self.audio else 0,
        )

    def split(self, text: str) -> list[Part]:
        """The text as parts of a chat message."""
        kinds = {
            mark: kind for kind, mark in (("image", self.image), ("audio", self.audio)) if mark
        }
        pieces = re.split("(" + "|".join(map(re.escape, kinds)) + ")", text) if kinds else [text]
        return [
            {"type": kinds[piece]} if piece in kinds else {"type": "text", "text": piece}
            for piece in pieces
            if piece
        ]


class MediaModel(Protocol):
    """What is needed of a model.

    Attributes:
        marks: of its processor.
    """

    marks: Marks

    def prepared(
        self, text: str, images: list[Image.Image], sounds: list[Samples]
    ) -> dict[str, Any]:
        """Tensors for `generate`, on the model's device; "input_ids" of shape (1, tokens)."""

    @property
    def audio_rate(self) -> int:
        """Samples a second that it hears; 0 when it does not."""

    @property
    def audio_seconds(self) -> float:
        """What it can hear of one sound."""

    @property
    def sees(self) -> bool:
        """Whether it takes images."""


class _HasMedia(Protocol):
    @property
    def images(self) -> Sequence[pb.ImageData]: ...
    @property
    def audio(self) -> Sequence[pb.AudioData]: ...


@dataclass
class _Media:
    """The images and sounds of a call in the order of their marks, by the names of their fields."""

    images: dict[str, pb.ImageData] = field(default_factory=dict)
    audio: dict[str, pb.AudioData] = field(default_factory=dict)

    def add(self, owner: _HasMedia, prefix: str = "") -> None:
        self.images |= {f"{prefix}images[{i}]": one for i, one in enumerate(owner.images)}
        self.audio |= {f"{prefix}audio[{i}]": one for i, one in enumerate(owner.audio)}


class MediaPrompts:
    """Makes the prompts of one model.

    Args:
        model: its processor runs in one thread here, call after call.
        render: puts a conversation of parts into the model's chat template, or raises.
        templated: whether the model has one.
        launch: the limits.
    """

    def __init__(
        self,
        model: MediaModel,
        render: Callable[[list[Turn]], Awaitable[str]],
        templated: bool,
        launch: WorkerSpec,
    ) -> None:
        self._model = model
        self._render = render
        self._templated = templated
        self._launch = launch
        self._thread = ModelThread(launch.max_waiting)

    async def of_text(self, request: pb.TextRequest) -> Prompt:
        """The prompt of a GenerateText.

        Raises:
            InvalidArgumentError: the media do not fit the marks, the model, or do not decode.
            InputTooLargeError: they are over a limit.
            QueueFullError: too many calls wait already.
        """
        media = _Media()
        media.add(request)
        text = await self.placed(request.prompt, len(media.images), len(media.audio))
        return await self._prompt(text, media)

    async def of_chat(self, messages: Sequence[pb.ChatMessage]) -> Prompt:
        """The prompt of a ChatCompletion. Raises what `of_text` and `ChatTemplate.render` do."""
        media = _Media()
        turns = []
        for index, message in enumerate(messages):
            media.add(message, f"messages[{index}].")
            turns.append({"role": message.role, "content": self._parts(message, index)})
        return await self._prompt(await self._render(turns), media)

    async def fill_in(self, request: pb.InferRequest) -> None:
        """Makes the text of an Infer what the model reads. Raises what `of_text` does."""
        if request.WhichOneof("input") == "text":
            if self._templated:
                request.text = await self._render([_user(_parts_before(request.text, 0, 0))])
            return
        if not request.prompt:
            raise MissingFieldError("prompt is empty", field="prompt")
        images, sounds = int(request.HasField("image")), int(request.HasField("audio"))
        request.prompt = await self.placed(request.prompt, images, sounds)
        self._check_counts(request.prompt, images, sounds)

    async def placed(self, prompt: str, images: int, sounds: int) -> str:
        """A prompt with a mark for each image and sound: its own, or new ones before the text."""
        marks = self._model.marks
        if not (images or sounds) or any(marks.count(prompt)):
            return prompt
        if self._templated:
            return await self._render([_user(_parts_before(prompt, images, sounds))])
        before = marks.image * images + marks.audio * sounds
        return f"{before}\n{prompt}" if before else prompt

    def _parts(self, message: pb.ChatMessage, index: int) -> list[Part]:
        images, sounds = self._model.marks.count(message.content)
        if not (images or sounds):
            return _parts_before(message.content, len(message.images), len(message.audio))
        given = len(message.images), len(message.audio)
        self._check_counts(message.content, *given, f"messages[{index}].")
        return self._model.marks.split(message.content)

    def _check_counts(self, text: str, images: int, sounds: int, prefix: str = "") -> None:
        marks = self._model.marks
        image_marks, sound_marks = marks.count(text)
        for name, mark, there, given in (
            ("images", marks.image, image_marks, images),
            ("audio", marks.audio, sound_marks, sounds),
        ):
            if mark and there != given:
                raise InvalidArgumentError(
                    f"the prompt has the mark {mark} {there} times, and {prefix}{name} has {given}",
                    field=f"{prefix}{name}",
                )

    def _check_kinds(self, media: _Media) -> None:
        for name, given, able in (
            ("images", media.images, self._model.sees),
            ("audio", media.audio, self._model.audio_rate > 0),
        ):
            if given and not able:
                raise InvalidArgumentError(
                    f"model {self._launch.model_id} takes no {name}", field=next(iter(given))
                )
        count, limit = len(media.images) + len(media.audio), self._launch.max_media
        if count > limit:
            raise InputTooLargeError(
                f"{count} images and sounds are over the limit of {limit} a call",
                metadata={"limit": str(limit)},
            )

    async def _prompt(self, text: str, media: _Media) -> Prompt:
        if not text:
            raise MissingFieldError("the prompt is empty", field="prompt")
        self._check_kinds(media)
        self._check_counts(text, len(media.images), len(media.audio))

        def read(cancelled: Any) -> dict[str, Any]:
            images, sounds = self._images(media), self._sounds(media)
            raise_if_cancelled(cancelled)
            return self._model.prepared(text, images, sounds)

        inputs = await self._thread.run(read)
        return Prompt(inputs["input_ids"][0].tolist(), inputs)

    def _images(self, media: _Media) -> list[Image.Image]:
        images: list[Image.Image] = []
        pixels, limit = 0, self._launch.max_image_pixels
        for name, one in media.images.items():
            images.append(decode_image(one.data, limit, name, before=pixels))
            pixels += images[-1].width * images[-1].height
        return images

    def _sounds(self, media: _Media) -> list[Samples]:
        sounds: list[Samples] = []
        seconds, limit = 0.0, self._launch.max_audio_seconds
        rate, longest = self._model.audio_rate, self._model.audio_seconds
        for name, one in media.audio.items():
            if longest <= limit - seconds:
                sounds.append(decode_audio(one, rate, longest, name))
            else:
                sounds.append(decode_audio(one, rate, limit, name, before=seconds))
            seconds += len(sounds[-1]) / rate
        return sounds


def _user(parts: list[Part]) -> Turn:
    return {"role": "user", "content": parts}


def _parts_before(text: str, images: int, sounds: int) -> list[Part]:
    """Images and sounds, and then the text."""
    parts = [{"type": "image"}] * images + [{"type": "audio"}] * sounds
    return [*parts, {"type": "text", "text": text}] if text else parts
