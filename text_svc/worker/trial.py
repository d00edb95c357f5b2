"""A model's trial: small calls that it must answer before it is ready.

Some models load and then fail at each call: a file is missing that only calls need, or parts do not
fit together. Such a load is refused with the reason. The calls run the handlers that serve, in the
worker alone: the front does not know of them, and no metric counts them.

This does not find a chat template that fails, since GenerateText needs none. It is imported before
the process is restricted, so NumPy, which starts threads, is not used here.
"""

from __future__ import annotations

import asyncio
import io
import logging
import math
import struct
from collections.abc import AsyncIterator, Sequence
from typing import Any

from google.protobuf.message import Message
from PIL import Image

from ml import transformers_pb2 as pb
from shared import pipelines
from shared.errors import InvalidModelError, ResourceExhaustedError, ServiceError
from text_svc.link.server import Handlers
from text_svc.worker.counting import uncounted

log = logging.getLogger(__name__)

# A few tokens of nearly every vocabulary.
TEXT = "hello, a 1"
# The side of a picture where the model's configuration has none, and the largest.
SIDE, MAX_SIDE = 64, 2048
SOUND_RATE = 16_000
SOUND_SECONDS = 0.5
SOUND_HERTZ = 440
# Tokens of a text for speech, out of the model's own vocabulary.
SPOKEN_TOKENS = 8

# The name of an RPC, and its request.
Call = tuple[str, Message]


def calls(pipeline_type: str, pipeline: Any) -> list[Call]:
    """The calls of a trial.

    Args:
        pipeline_type: its canonical name.
        pipeline: one of `text_svc.worker.pipelines`, loaded.
    """
    image, sound, one_token = _image(pipeline), _sound(), {"max_new_tokens": "1"}
    text = pb.TextRequest(prompt=TEXT, max_length=1)
    match pipeline_type:
        case pipelines.TEXT_GENERATION.name:
            return [("GenerateText", text)]
        case pipelines.FEATURE_EXTRACTION.name:
            return [("GenerateEmbeddings", pb.GenerateEmbeddingsRequest(texts=[TEXT]))]
        case pipelines.TEXT2TEXT.name | pipelines.TRANSLATION.name | pipelines.SUMMARIZATION.name:
            return [_infer(text=TEXT, options=one_token), ("GenerateText", text)]
        case pipelines.RERANKING.name:
            return [_infer(ranking=pb.Ranking(query=TEXT, documents=[TEXT]))]
        case pipelines.ZERO_SHOT.name:
            return [_infer(text=TEXT, labels=[TEXT])]
        case pipelines.QUESTION_ANSWERING.name:
            return [_infer(text=TEXT, prompt=TEXT)]
        case pipelines.FILL_MASK.name:
            return [_infer(text=f"{TEXT} {pipeline.processor.mask_token}")]
        case (
            pipelines.IMAGE_CLASSIFICATION.name
            | pipelines.OBJECT_DETECTION.name
            | pipelines.IMAGE_SEGMENTATION.name
            | pipelines.DEPTH_ESTIMATION.name
            | pipelines.IMAGE_TO_IMAGE.name
        ):
            return [_infer(image=image)]
        case pipelines.ZERO_SHOT_OBJECT_DETECTION.name:
            return [_infer(image=image, labels=[TEXT])]
        case pipelines.MASK_GENERATION.name:
            centre = pb.RegionPrompt(points=[pb.PromptPoint(x=0.5, y=0.5)])
            return [_infer(image=image, region_prompts=[centre])]
        case pipelines.IMAGE_FEATURE_EXTRACTION.name:
            return [_infer(image=image, options={"pooling": "mean"})]
        case pipelines.IMAGE_TO_TEXT.name:
            return [_infer(image=image, options=one_token)]
        case pipelines.VISUAL_QUESTION_ANSWERING.name:
            return [_infer(image=image, prompt=TEXT)]
        case pipelines.DOCUMENT_QUESTION_ANSWERING.name if "document" in pipeline.takes:
            word = pb.DocumentWord(text=TEXT, box=(0, 0, 1, 1))
            return [_infer(document=pb.Document(words=[word], image=image), prompt=TEXT)]
        case pipelines.DOCUMENT_QUESTION_ANSWERING.name:
            return [_infer(image=image, prompt=TEXT, options=one_token)]
        case pipelines.VIDEO_CLASSIFICATION.name:
            return [_infer(video=_video(pipeline))]
        case pipelines.AUDIO_CLASSIFICATION.name | pipelines.AUDIO_TO_AUDIO.name:
            return [_infer(audio=sound)]
        case pipelines.CLIP.name:
            return [_infer(image=image, labels=[TEXT]), _infer(text=TEXT)]
        case pipelines.CLAP.name:
            return [_infer(audio=sound, labels=[TEXT]), _infer(text=TEXT)]
        case pipelines.FLORENCE2.name:
            return [_infer(image=image, prompt="<CAPTION>", options=one_token)]
        case pipelines.VISUAL_LANGUAGE.name | pipelines.JANUS.name:
            images = [image] if "image" in pipeline.takes else []
            sounds = [sound] if "audio" in pipeline.takes else []
            with_media = pb.TextRequest(prompt=TEXT, max_length=1, images=images, audio=sounds)
            return [("GenerateText", with_media)]
        case pipelines.SPEECH_RECOGNITION.name:
            return [_infer(audio=sound)]
        case pipelines.LITERT.name:
            zeros = pipeline.zeros()
            return [] if zeros is None else [_infer(tensors=zeros)]
        case pipelines.TEXT_TO_SPEECH.name:
            return [_infer(text=_spoken(pipeline.processor))]
    return [_infer(text=TEXT)]


async def try_calls(
    model_id: str, handlers: Handlers, calls: Sequence[Call], seconds: float
) -> None:
    """Makes the calls of a trial, one after the other.

    Args:
        model_id: for messages.
        handlers: of the model.
        calls: see `calls`.
        seconds: that they may take together. A model that takes longer is served all the same: it
            is slow, and has not failed.

    Raises:
        InvalidModelError: the model fails at a call; with the reason.
        ResourceExhaustedError: it lacks memory for one.
        Exception: what a library raised.
    """
    try:
        async with asyncio.timeout(seconds):
            with uncounted():
                for rpc, request in calls:
                    await _try(model_id, handlers[rpc], rpc, request)
    except TimeoutError:
        log.warning("a trial is not over in time", extra={"model": model_id, "seconds": seconds})


async def _try(model_id: str, handler: Any, rpc: str, request: Message) -> None:
    try:
        answer = handler(request)
        if isinstance(answer, AsyncIterator):
            async for _ in answer:
                pass
        else:
            await answer
    except ResourceExhaustedError:
        raise
    except ServiceError as error:
        # An option max_length may leave no room for these texts, and a vocabulary of few words
        # may have none of them.
        if "limit" in error.metadata or error.field == "texts[0]":
            return
        raise InvalidModelError(
            f"model {model_id} loads but fails at each {rpc}: {error.message}"
        ) from None


def _infer(**fields: Any) -> Call:
    return "Infer", pb.InferRequest(**fields)


def _image(pipeline: Any) -> pb.ImageData:
    """A picture of the size that the model reads: some do not scale others."""
    config = getattr(getattr(pipeline, "model", None), "config", None)
    side = getattr(getattr(config, "vision_config", config), "image_size", SIDE)
    if not isinstance(side, int) or not 0 < side <= MAX_SIDE:
        side = SIDE
    file = io.BytesIO()
    Image.new("RGB", (side, side), (120, 130, 140)).save(file, "PNG")
    return pb.ImageData(data=file.getvalue())


def _video(pipeline: Any) -> pb.VideoData:
    """Two frames of the size that the model reads."""
    first = Image.open(io.BytesIO(_image(pipeline).data))
    file = io.BytesIO()
    second = Image.new("RGB", first.size, (140, 130, 120))
    first.save(file, "GIF", save_all=True, append_images=[second])
    return pb.VideoData(data=file.getvalue())


def _sound() -> pb.AudioData:
    """A soft tone: some models take silence for no sound at all."""
    turns = 2 * math.pi * SOUND_HERTZ / SOUND_RATE
    tone = [0.1 * math.sin(turns * n) for n in range(int(SOUND_RATE * SOUND_SECONDS))]
    data = struct.pack(f"<{len(tone)}f", *tone)
    return pb.AudioData(data=data, format="pcm_f32le", rate=SOUND_RATE)


def _spoken(tokenizer: Any) -> str:
    """Some letters that a speech model has, whatever its language."""
    letters = [token for token in sorted(tokenizer.get_vocab()) if token.isalpha()]
    return "".join(letters[:SPOKEN_TOKENS]) or TEXT
