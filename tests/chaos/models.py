"""The models of a run, and what they answer as their libraries compute it in this process."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path

import mediapipe as mp
import numpy as np
from mediapipe.tasks.python import BaseOptions, vision

from ml import mediapipe_pb2
from ml import transformers_pb2 as pb
from shared.model_ids import ModelId, folder_name
from tests.integration.vision.reference import REFERENCES, clip_for
from tests.support import tiny_models, tiny_text
from tests.support.embeddings import expected
from tests.support.stack import ROOT
from tests.support.vision_frames import rgb_frames

ORGANISATION = "chaos"
CHAT, EMBEDDER, LABELLER = f"{ORGANISATION}/chat", f"{ORGANISATION}/embedder", f"{ORGANISATION}/nli"
GUEST = f"{ORGANISATION}/guest"
# The last part of the id of a model that calls may load.
ON_CALL = "on-call"

QUESTION = "the sea and the sky"
TEXTS = ["the sea", "the sky and a story of snow", "what is gravity?"]
TOKENS = 24
LONG_TOKENS = 3000
FRAMES = 8
# The answers of two libraries to the same numbers differ by rounding.
VECTOR_TOLERANCE = 1e-3
CONVERTED = ROOT / "run" / "chaos-converted"
# Of a file that a visiting model has and nothing reads: a fetch can be held in the middle of it.
PAD_BYTES = 2 << 20
PAD = "source.spm"


@dataclass(frozen=True)
class Wish:
    """A model that stays loaded: it is pinned, so the models that come and go make way for it."""

    model_id: str
    pipeline: str
    options: dict[str, str]


WISHES = (
    Wish(CHAT, "text-generation", {"cache_size_mb": "64", "pin": "true"}),
    Wish(EMBEDDER, "feature-extraction", {"pin": "true"}),
    Wish(LABELLER, "text-classification", {"pin": "true"}),
)


@dataclass(frozen=True)
class Answers:
    """What right answers are.

    Attributes:
        chat: the text of `TOKENS` tokens after `QUESTION`.
        vectors: of `TEXTS` by the embedder.
        guest_vectors: of `TEXTS` by the guest and all visitors; those of the other files second.
        labels: scores of the first of `TEXTS` by the labeller.
        faces: MediaPipe's result for each frame of `frames`.
        face: MediaPipe's result for the picture.
        sha256: of the weights of the chat model.
    """

    chat: str
    vectors: np.ndarray
    guest_vectors: tuple[np.ndarray, np.ndarray]
    labels: dict[str, float]
    faces: list[vision.FaceDetectorResult]
    face: vision.FaceDetectorResult
    sha256: str


class Models:
    """Makes the models in `folder/text`.

    Attributes:
        converted: the folder for their conversions.
        frames: messages of a video with a face.
        picture: the first of them as a picture.
    """

    def __init__(self, folder: Path, vision_models: Path) -> None:
        self.folder = folder
        self.converted = folder / "converted"
        self._run = uuid.uuid4().hex[:8]
        self._text = folder / "text"
        self._vision = vision_models
        (folder / "vision").symlink_to(vision_models)
        tiny_text.save_llama(self._text / CHAT)
        tiny_models.build("bert", self._text / EMBEDDER)
        tiny_models.build("bert-nli", self._text / LABELLER)
        for other, name in enumerate((GUEST, f"{GUEST}-other")):
            self._make_guest(self._text / name, other)
        self._images = clip_for("faces", FRAMES)
        self.frames = list(rgb_frames(self._images))
        height, width = self._images[0].shape[:2]
        self.size = (width, height)
        self.picture = mediapipe_pb2.ImageRequest(
            image_data=self._images[0].tobytes(), format="rgb", width=width, height=height
        )

    def _make_guest(self, folder: Path, other: int) -> None:
        tiny_models.build("bert", folder)
        if other:
            from safetensors.numpy import load_file, save_file

            weights = load_file(folder / "model.safetensors")
            name = next(name for name in weights if name.endswith("word_embeddings.weight"))
            weights[name] = np.ascontiguousarray(weights[name][::-1])
            save_file(weights, folder / "model.safetensors", {"format": "pt"})

    def publish_new(self, name: str) -> str:
        """Makes a model that nobody has fetched or converted, and returns its id.

        It has the files of the guest, and one of its own.

        Args:
            name: begins the last part of its id.
        """
        model_id = f"{ORGANISATION}/{name}-{self._run}"
        self.publish(model_id)
        return model_id

    def publish_known(self, name: str) -> str:
        """Makes a model that is just as the guest, which saves its conversion; returns its id."""
        model_id = f"{ORGANISATION}/{name}"
        self._link(GUEST, model_id)
        converted = self.converted / folder_name(ModelId(GUEST))
        for manifest in converted.glob("*/conversion.json"):
            target = self.converted / folder_name(ModelId(model_id)) / manifest.parent.name
            if not target.exists():
                shutil.copytree(manifest.parent, target)
        return model_id

    def publish(self, model_id: str, *, other: bool = False) -> None:
        """Makes the files of a new model.

        Args:
            model_id: its id.
            other: whether it has the other weights.
        """
        source = f"{GUEST}-other" if other else GUEST
        target = self._link(source, model_id)
        config = json.loads((target / "config.json").read_text())
        # Fetched files and conversions are known by hashes: these are new.
        (target / "config.json").unlink()
        (target / "config.json").write_text(json.dumps(config | {"_name_or_path": model_id}))
        (target / PAD).write_bytes(random.Random(model_id).randbytes(PAD_BYTES))

    def _link(self, source: str, model_id: str) -> Path:
        target = self._text / model_id
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(self._text / source, target, copy_function=os.link)
        return target

    def withdraw(self, model_id: str) -> None:
        """Removes a published model."""
        shutil.rmtree(self._text / model_id, ignore_errors=True)

    def take_conversions(self) -> None:
        """Copies what earlier runs have converted of the models that all runs have."""
        CONVERTED.mkdir(parents=True, exist_ok=True)
        shutil.copytree(CONVERTED, self.converted)

    def keep_conversions(self) -> None:
        """Keeps what this run has converted of them for the next ones."""
        for model_id in (CHAT, EMBEDDER, GUEST):
            name = folder_name(ModelId(model_id))
            for manifest in (self.converted / name).glob("*/conversion.json"):
                kept = CONVERTED / name / manifest.parent.name
                if not kept.exists():
                    new = Path(tempfile.mkdtemp(dir=CONVERTED.parent)) / kept.name
                    shutil.copytree(manifest.parent, new)
                    kept.parent.mkdir(exist_ok=True)
                    with contextlib.suppress(OSError):  # another run was as quick
                        new.rename(kept)
                    shutil.rmtree(new.parent)

    def answers(self) -> Answers:
        """Computes what is right; takes some seconds."""
        frames = REFERENCES["faces"].run(self._vision, self._images)
        return Answers(
            chat=self._chat(),
            vectors=self._vectors(EMBEDDER),
            guest_vectors=(
                self._vectors(GUEST),
                self._vectors(f"{GUEST}-other"),
            ),
            labels=self._labels(),
            faces=list(frames),
            face=self._face(),
            sha256=hashlib.sha256(
                (self._text / CHAT / "model.safetensors").read_bytes()
            ).hexdigest(),
        )

    def _vectors(self, model_id: str) -> np.ndarray:
        return expected(self._text / model_id, TEXTS, normalize_embeddings=True)

    def _chat(self) -> str:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = self._text / CHAT
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        messages = [{"role": "user", "content": QUESTION}]
        prompt = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            tokens = model.generate(**prompt, do_sample=False, max_new_tokens=TOKENS)
        new = tokens[0, prompt["input_ids"].shape[1] :]
        return str(tokenizer.decode(new, skip_special_tokens=True))

    def _labels(self) -> dict[str, float]:
        from transformers import pipeline

        classify = pipeline("text-classification", str(self._text / LABELLER), top_k=None)
        return {each["label"]: each["score"] for each in classify([TEXTS[0]])[0]}

    def _face(self) -> vision.FaceDetectorResult:
        model = BaseOptions(model_asset_path=str(self._vision / REFERENCES["faces"].asset))
        with vision.FaceDetector.create_from_options(vision.FaceDetectorOptions(model)) as task:
            image = np.ascontiguousarray(self._images[0])
            return task.detect(mp.Image(mp.ImageFormat.SRGB, image))


def same_vectors(answer: pb.GeneratedEmbeddingsResponse, right: np.ndarray) -> bool:
    """Whether these are the vectors."""
    found = np.array([each.values for each in answer.embeddings], np.float32)
    return found.shape == right.shape and bool(np.abs(found - right).max() <= VECTOR_TOLERANCE)


def same_faces(
    answer: mediapipe_pb2.FaceDetectionResponse, right: object, size: tuple[int, int]
) -> bool:
    """Whether these are the detections."""
    try:
        REFERENCES["faces"].compare(answer, right, size)
    except AssertionError:
        return False
    return True
