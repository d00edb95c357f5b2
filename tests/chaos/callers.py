"""Callers who make ordinary calls all the time, and look at each answer."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from ml import common_pb2, mediapipe_pb2_grpc, model_management_pb2_grpc, transformers_pb2_grpc
from ml import model_management_pb2 as models_pb
from ml import transformers_pb2 as text_pb
from tests.chaos.log import Log
from tests.chaos.models import (
    CHAT,
    EMBEDDER,
    GUEST,
    LABELLER,
    QUESTION,
    TEXTS,
    TOKENS,
    WISHES,
    Answers,
    Models,
    Wish,
    same_faces,
    same_vectors,
)
from tests.support.stack import _channel_options

# Ends a call that hangs.
CALL_SECONDS = 120.0
# The same of a load, which converts a model.
LOAD_SECONDS = 600.0
# Between two calls of a caller: the callers are many, and the cores two. Loads take the longest.
PAUSE_SECONDS = 1.0
LOAD_PAUSE_SECONDS = 3.0
SCORE_TOLERANCE = 1e-3

# How a call went.
RIGHT, WRONG, ERROR = "right", "wrong", "error"


@dataclass
class Call:
    """One call, while it is made.

    Attributes:
        channel: to Envoy.
        begun: set once a message of the answer has come.
        said: what was wrong with the answer.
    """

    channel: grpc.Channel
    begun: bool = False
    said: str = ""
    fields: dict[str, Any] = field(default_factory=dict)

    def messages(self, stream: Any) -> Iterator[Any]:
        """The messages of a stream; notes that there are some."""
        for message in stream:
            self.begun = True
            yield message

    @property
    def text(self) -> transformers_pb2_grpc.TransformersServiceStub:
        return transformers_pb2_grpc.TransformersServiceStub(self.channel)

    @property
    def manager(self) -> model_management_pb2_grpc.ModelManagementServiceStub:
        return model_management_pb2_grpc.ModelManagementServiceStub(self.channel)

    @property
    def vision(self) -> mediapipe_pb2_grpc.MediapipeServiceStub:
        return mediapipe_pb2_grpc.MediapipeServiceStub(self.channel)


# Makes a call, and says whether its answer was right.
Make = Callable[[Call], bool]


def make(log: Log, kind: str, channel: grpc.Channel, action: Make, **fields: Any) -> str:
    """Makes a call, writes down how it went, and returns that."""
    call = Call(channel, fields=dict(fields))
    began, outcome, error = log.now(), WRONG, {}
    try:
        outcome = RIGHT if action(call) else WRONG
    except grpc.RpcError as failure:
        outcome, error = ERROR, error_fields(failure)
    log.add(
        "call",
        kind=kind,
        began=round(began, 3),
        seconds=round(log.now() - began, 3),
        outcome=outcome,
        begun=call.begun,
        said=call.said,
        **error,
        **call.fields,
    )
    return outcome


def error_fields(failure: grpc.RpcError) -> dict[str, Any]:
    """Code, reason and message of an error."""
    info = error_details_pb2.ErrorInfo()
    with contextlib.suppress(Exception):  # whatever a proxy sends in its place
        packed = dict(failure.trailing_metadata() or ())["grpc-status-details-bin"]
        for detail in status_pb2.Status.FromString(packed).details:
            detail.Unpack(info)
    return {
        "code": failure.code().name,
        "reason": info.reason,
        "message": str(failure.details())[:300],
    }


def open_channel(address: str) -> grpc.Channel:
    """To Envoy; it connects again soon after Envoy has died."""
    again = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 1000)]
    return grpc.insecure_channel(address, options=[*_channel_options(), *again])


class Calls:
    """The kinds of calls, and what is right."""

    def __init__(self, models: Models, answers: Answers) -> None:
        self._models = models
        self._answers = answers

    def chat(self, call: Call) -> bool:
        request = text_pb.ChatRequest(
            model=CHAT,
            messages=[text_pb.ChatMessage(role="user", content=QUESTION)],
            temperature=0,
            max_tokens=TOKENS,
        )
        stream = call.text.ChatCompletion(request, timeout=CALL_SECONDS)
        found = list(call.messages(stream))
        call.said = "".join(each.content for each in found)
        whole = bool(found) and found[-1].done and sum(each.done for each in found) == 1
        return whole and call.said == self._answers.chat

    def embed(self, call: Call) -> bool:
        request = text_pb.GenerateEmbeddingsRequest(model=EMBEDDER, texts=TEXTS)
        answer = call.text.GenerateEmbeddings(request, timeout=CALL_SECONDS)
        return same_vectors(answer, self._answers.vectors)

    def stream_embeddings(self, call: Call) -> bool:
        requests = [
            text_pb.GenerateEmbeddingsRequest(model=EMBEDDER, texts=[text]) for text in TEXTS
        ]
        stream = call.text.StreamEmbeddings(iter(requests), timeout=CALL_SECONDS)
        found = text_pb.GeneratedEmbeddingsResponse()
        for answer in call.messages(stream):
            found.embeddings.extend(answer.embeddings)
        return same_vectors(found, self._answers.vectors)

    def infer(self, call: Call) -> bool:
        request = text_pb.InferRequest(model=LABELLER, text=TEXTS[0])
        answer = call.text.Infer(request, timeout=CALL_SECONDS)
        found = {each.label: each.score for each in answer.labels}
        right = self._answers.labels
        call.said = str(found)
        best = max(right, key=lambda label: right[label])
        return (
            bool(found)
            and answer.labels[0].label == best
            and all(abs(score - right[label]) < SCORE_TOLERANCE for label, score in found.items())
        )

    def picture(self, call: Call) -> bool:
        answer = call.vision.DetectFaces(self._models.picture, timeout=CALL_SECONDS)
        return same_faces(answer, self._answers.face, self._models.size)

    def video(self, call: Call) -> bool:
        stream = call.vision.StreamFaceDetection(iter(self._models.frames), timeout=CALL_SECONDS)
        answers = list(call.messages(stream))
        return len(answers) == len(self._answers.faces) and all(
            same_faces(answer, right, self._models.size)
            for answer, right in zip(answers, self._answers.faces, strict=True)
        )

    def file(self, call: Call) -> bool:
        request = models_pb.ModelFileRequest(model_id=CHAT, file_path="model.safetensors")
        digest = hashlib.sha256()
        for chunk in call.messages(call.manager.GetModelFile(request, timeout=CALL_SECONDS)):
            digest.update(chunk.data)
        return digest.hexdigest() == self._answers.sha256

    def list_models(self, call: Call) -> bool:
        answer = call.manager.ListModels(models_pb.ListModelsRequest(), timeout=CALL_SECONDS)
        ids = [each.model_id for each in answer.models]
        return ids == sorted(set(ids))

    def loaded_models(self, call: Call) -> bool:
        answer = call.manager.GetLoadedModels(common_pb2.EmptyRequest(), timeout=CALL_SECONDS)
        return all(each.model_id and each.pipeline_type for each in answer.models)

    def watch(self, call: Call) -> bool:
        """Some changes of the models, or none for a while."""
        request = models_pb.WatchModelsRequest()
        last = 0
        try:
            for answer in call.messages(call.manager.WatchModels(request, timeout=_WATCH_SECONDS)):
                if answer.sequence < last or not (last or answer.complete):
                    call.said = f"sequence {answer.sequence} after {last}"
                    return False
                last = answer.sequence
        except grpc.RpcError as failure:
            if failure.code() is not grpc.StatusCode.DEADLINE_EXCEEDED or not call.begun:
                raise
        return True

    def load(self, wish: Wish) -> Make:
        """Asks for a model that is desired already."""

        def action(call: Call) -> bool:
            call.fields["model"] = wish.model_id
            answer = load(call, wish.model_id, wish.pipeline, wish.options)
            call.said = answer.message
            return answer.success and answer.pipeline_type == wish.pipeline

        return action

    def guest(self, action: str, model_id: str = GUEST) -> Make:
        """One call of "load", "embed", "unload" about a model that comes and goes."""
        right = self._answers.guest_vectors

        def make(call: Call) -> bool:
            call.fields["model"] = model_id
            if action == "load":
                return load(call, model_id, "feature-extraction", {}).success
            if action == "unload":
                request = models_pb.UnloadModelRequest(model_id=model_id)
                return bool(call.manager.UnloadModel(request, timeout=CALL_SECONDS).success)
            asked = text_pb.GenerateEmbeddingsRequest(model=model_id, texts=TEXTS)
            answer = call.text.GenerateEmbeddings(asked, timeout=CALL_SECONDS)
            if model_id == GUEST:
                return same_vectors(answer, right[0])
            call.fields["files"] = [i for i in (0, 1) if same_vectors(answer, right[i])]
            return bool(call.fields["files"])

        return make


_WATCH_SECONDS = 10.0


def load(
    call: Call, model_id: str, pipeline: str, options: dict[str, str]
) -> models_pb.LoadModelResponse:
    """LoadModel, which waits."""
    request = models_pb.LoadModelRequest(model_id=model_id, pipeline_type=pipeline, options=options)
    answer: models_pb.LoadModelResponse = call.manager.LoadModel(request, timeout=LOAD_SECONDS)
    return answer


def model_states(channel: grpc.Channel) -> dict[str, int]:
    """The states of all models; none while nobody answers."""
    stub = model_management_pb2_grpc.ModelManagementServiceStub(channel)
    with contextlib.suppress(grpc.RpcError):
        answer = stub.ListModels(models_pb.ListModelsRequest(), timeout=5)
        return {each.model_id: each.state for each in answer.models}
    return {}


class Caller:
    """Makes the calls of a list in turn, in a thread, until it is stopped."""

    def __init__(self, log: Log, address: str, calls: list[tuple[str, Make]]) -> None:
        self._log = log
        self._address = address
        self._calls = calls
        loads = any(kind.endswith("load") for kind, _ in calls)
        self._pause = LOAD_PAUSE_SECONDS if loads else PAUSE_SECONDS
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"caller {calls[0][0]}")
        self._thread.start()

    def _run(self) -> None:
        with open_channel(self._address) as channel:
            while not self._stopped.is_set():
                for kind, action in self._calls:
                    make(self._log, kind, channel, action)
                    if self._stopped.wait(self._pause):
                        break

    def tell_to_stop(self) -> None:
        """It makes no more calls."""
        self._stopped.set()

    def join(self) -> None:
        """Waits for the call under way."""
        self._thread.join()


def steady(calls: Calls) -> dict[str, list[tuple[str, Make]]]:
    """The callers of a run, each with its calls."""
    guests = [(f"guest {each}", calls.guest(each)) for each in ("load", "embed", "unload")]
    return {
        "chat": [("chat", calls.chat)],
        "embeddings": [
            ("embeddings", calls.embed),
            ("stream of embeddings", calls.stream_embeddings),
        ],
        "infer": [("infer", calls.infer)],
        "vision": [("picture", calls.picture), ("video", calls.video)],
        "models": [
            ("list", calls.list_models),
            ("loaded", calls.loaded_models),
            ("file", calls.file),
        ],
        "watch": [("watch", calls.watch)],
        "loads": [("load", calls.load(wish)) for wish in WISHES],
        "guest": guests,
    }


# The kinds of calls that must be answered right again after a fault.
NEEDED = (
    *("chat", "embeddings", "stream of embeddings", "infer", "picture", "video"),
    *("list", "file", "load"),
)
