"""Options of LoadModel are checked in every state of the model, and callers are told what holds."""

from __future__ import annotations

import grpc

from ml import model_management_pb2 as pb
from ml import model_management_pb2_grpc as pb_grpc
from tests.support.attack import Attacks
from tests.support.stack import CHAT, EMBEDDER, Stack

Code = grpc.StatusCode
BAD_OPTIONS = (
    {"speed": "11"},
    {"dtype": "float99"},
    {"max_length": "-1"},
    {"device": "cuda:" + "9" * 100_000},
    {"engine": "transformers", "dtype": "int8"},
    {"x" * 1_000_000: "1"},
)


def load(
    stub: pb_grpc.ModelManagementServiceStub,
    model_id: str,
    kind: str = "",
    architecture: str = "",
    **options: str,
) -> tuple[Code, str]:
    """The status, with its message or the answer's."""
    request = pb.LoadModelRequest(
        model_id=model_id, pipeline_type=kind, architecture=architecture, options=options
    )
    try:
        return Code.OK, stub.LoadModel(request, timeout=300).message
    except grpc.RpcError as error:
        return error.code(), error.details() or ""


def test_options_of_a_loaded_model(
    attack: Attacks, stack: Stack, stub: pb_grpc.ModelManagementServiceStub
) -> None:
    """Bad options are refused for a loaded model too; others than those in force are told."""
    with attack("14 options of a loaded model", stack) as seen:
        for options in BAD_OPTIONS:
            code, message = load(stub, EMBEDDER, "feature-extraction", **options)
            assert code is Code.INVALID_ARGUMENT, options
            assert len(message) < 1000
        for alias in ("embeddings", "Sentence_Similarity"):
            code, message = load(stub, EMBEDDER, alias, engine="openvino", device="cpu")
            assert code is Code.OK
            assert "keeps" not in message
        code, message = load(stub, EMBEDDER, "embeddings", dtype="int8", engine="auto")
        assert code is Code.OK
        assert message.endswith(
            "It keeps the options of its first load (dtype=float32); unload it to load it with "
            "dtype=int8"
        )
        for kind, architecture in (("chat", ""), ("", "LlamaForCausalLM")):
            code, message = load(stub, EMBEDDER, kind, architecture)
            assert code is Code.FAILED_PRECONDITION
            assert "is loaded as feature-extraction" in message
        code, message = load(stub, "org/face", "face-detection", speed="11")
        assert code is Code.INVALID_ARGUMENT
        code, message = load(stub, "org/face", "face-detection", file="../../etc/passwd")
        assert code is Code.INVALID_ARGUMENT
        seen.say(f"{len(BAD_OPTIONS)} bad options refused; the others told")


def test_options_during_a_load(
    attack: Attacks, stack: Stack, stub: pb_grpc.ModelManagementServiceStub
) -> None:
    """The same while the model is being loaded."""
    with attack("14 options during a load", stack) as seen:
        request = pb.LoadModelRequest(model_id=CHAT, pipeline_type="chat")
        first = stub.LoadModel.future(request, timeout=300)
        other = pb.LoadModelRequest(
            model_id=CHAT, pipeline_type="text-generation", options={"max_length": "99"}
        )
        for options in BAD_OPTIONS:
            assert load(stub, CHAT, "chat", **options)[0] is Code.INVALID_ARGUMENT
        # By now the first one has begun the load.
        second = stub.LoadModel.future(other, timeout=300)
        assert not first.done(), "the load was over before the attack"
        assert load(stub, CHAT, "embeddings")[0] is Code.FAILED_PRECONDITION
        assert "keeps" not in first.result().message
        assert second.result().message.endswith(
            "It keeps the options of its first load (none); unload it to load it with max_length=99"
        )
        seen.say("bad options refused, others told, another pipeline refused")
