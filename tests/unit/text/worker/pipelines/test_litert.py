"""Tensors through .tflite models, against LiteRT called directly and against what they compute."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from ml import transformers_pb2 as pb
from shared.errors import InvalidModelError
from tests.support.optional_models import SHARED
from tests.support.text_pipeline import serve, spec_of
from tests.support.tiny_tflite import Graph, Op, Tensor, adding, tflite
from text_svc.worker import pipelines
from text_svc.worker.engines.litert import LiteRtModel
from text_svc.worker.trial import try_calls

QUANTISED = Graph(
    tensors=[
        Tensor("x", [1, 3], dtype="int8", scale=0.5, zero_point=-3),
        Tensor("y", [1, 3], dtype="int8", scale=0.5, zero_point=-3),
        Tensor("shape", data=np.array([1, 3], np.int32)),
    ],
    ops=[Op("RESHAPE", ["x", "shape"], ["y"])],
    inputs=["x"],
    outputs=["y"],
)
TWO = (adding([1, 2], 1, signature="one"), adding([-1, 3], 5, signature="five"))
STRINGS = Graph(
    tensors=[
        Tensor("x", [2], "string"),
        Tensor("y", [2], "string"),
        Tensor("shape", data=np.array([2], np.int32)),
    ],
    ops=[Op("RESHAPE", ["x", "shape"], ["y"])],
    inputs=["x"],
    outputs=["y"],
)


def spec(folder: Path, model: bytes, **fields: Any) -> Any:
    (folder / "model.tflite").write_bytes(model)
    options = {"file": "model.tflite", "engine": "litert"}
    return spec_of(folder, "litert", options, engine="litert", max_running=2, **fields)


def floats(values: Any, name: str = "x") -> pb.Tensor:
    array = np.asarray(values, "<f4")
    return pb.Tensor(name=name, dtype="float32", shape=array.shape, data=array.tobytes())


def request(*tensors: pb.Tensor, **options: str) -> pb.InferRequest:
    return pb.InferRequest(tensors=pb.Tensors(tensors=tensors), options=options)


def array(tensor: pb.Tensor) -> Any:
    return np.frombuffer(tensor.data, tensor.dtype).reshape(tuple(tensor.shape))


async def refused(text: Any, asked: pb.InferRequest) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await text.Infer(asked)
    return caught.value.code(), str(caught.value.details())


async def test_a_model_without_signatures_is_called_and_described(tmp_path: Path) -> None:
    async with serve(spec(tmp_path, tflite(adding([1, 4], 2.5)))) as text:
        answer = await text.Infer(request(floats([[1, 2, 3, 4]])))
        (output,) = answer.tensors.tensors
        assert (output.name, output.dtype, list(output.shape)) == ("y", "float32", [1, 4])
        assert array(output).tolist() == [[3.5, 4.5, 5.5, 6.5]]
        plain = pb.Tensor(data=np.ones(4, "<f4").tobytes())  # the one input, as it is
        assert array((await text.Infer(request(plain))).tensors.tensors[0]).tolist() == [[3.5] * 4]
        (described,) = (await text.Infer(request(describe="true"))).tensors.signatures
        assert described.name == ""
        assert [(each.name, each.dtype, list(each.shape)) for each in described.inputs] == [
            ("x", "float32", [1, 4])
        ]
        assert not described.inputs[0].HasField("quantization")


def test_an_input_that_cannot_be_named_in_a_call_is_refused(tmp_path: Path) -> None:
    graph = Graph(
        tensors=[
            Tensor("self", [1, 3]),
            Tensor("y", [1, 3]),
            Tensor("shape", data=np.array([1, 3], np.int32)),
        ],
        ops=[Op("RESHAPE", ["self", "shape"], ["y"])],
        inputs=["self"],
        outputs=["y"],
        signature="one",
    )
    (tmp_path / "model.tflite").write_bytes(tflite(graph))
    with pytest.raises(InvalidModelError, match="an input of the model is called 'self'"):
        LiteRtModel(tmp_path / "model.tflite", threads=1, running=1)


async def test_quantised_tensors_are_passed_as_they_are(tmp_path: Path) -> None:
    async with serve(spec(tmp_path, tflite(QUANTISED))) as text:
        integers = np.array([[-128, 0, 127]], np.int8)
        sent = pb.Tensor(dtype="int8", data=integers.tobytes())
        (output,) = (await text.Infer(request(sent))).tensors.tensors
        assert array(output).tolist() == integers.tolist()
        assert list(output.quantization.scales) == [0.5]
        assert list(output.quantization.zero_points) == [-3]


async def test_signatures_are_chosen_and_dimensions_that_vary_are_resized(tmp_path: Path) -> None:
    async with serve(spec(tmp_path, tflite(*TWO))) as text:
        for rows in (4, 1, 2):
            ones = np.ones((rows, 3))
            answer = await text.Infer(request(floats(ones), signature="five"))
            assert array(answer.tensors.tensors[0]).tolist() == (ones + 5).tolist()
        answer = await text.Infer(request(floats([[1, 2]]), signature="one"))
        assert array(answer.tensors.tensors[0]).tolist() == [[2, 3]]
        described = (await text.Infer(request(describe="true"))).tensors.signatures
        shapes = {each.name: list(each.inputs[0].shape) for each in described}
        assert shapes == {"one": [1, 2], "five": [-1, 3]}
        for options in ({}, {"signature": "two"}):
            code, message = await refused(text, request(floats([[1, 2]]), **options))
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert "option signature must be one of one, five" in message


async def test_strings(tmp_path: Path) -> None:
    async with serve(spec(tmp_path, tflite(STRINGS))) as text:
        sent = pb.Tensor(name="x", dtype="string", strings=[b"a\xff", b""])
        (output,) = (await text.Infer(request(sent))).tensors.tensors
        assert (output.dtype, list(output.strings)) == ("string", [b"a\xff", b""])


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (floats([[1, 2]]), "shape is [1, 2]; input 'x' has shape [-1, 3], where -1 is any size"),
        (floats(np.ones((0, 3))), "shape is [0, 3]; input 'x' has shape [-1, 3]"),
        (pb.Tensor(name="x", shape=[-1, 3]), "shape is [-1, 3]; input 'x' has shape [-1, 3]"),
        (pb.Tensor(name="x", shape=[1 << 31, 3]), "float32 of shape [2147483648, 3] has 25769"),
        (pb.Tensor(name="x", shape=[1] * 99), "input 'x' has shape [-1, 3]"),
        (pb.Tensor(name="x"), "shape is []; input 'x' has shape [-1, 3]"),
        (pb.Tensor(name="x", shape=[1, 3], data=b"12"), "has 2 bytes; float32 of shape [1, 3] has"),
        (pb.Tensor(name="x", dtype="int8", shape=[1, 3]), "dtype is 'int8'; input 'x' is float32"),
        (pb.Tensor(name="z"), "name is 'z'; it must be one of x"),
    ],
)
async def test_tensors_that_do_not_fit_are_refused_with_both(
    tmp_path: Path, tensor: pb.Tensor, message: str
) -> None:
    async with serve(spec(tmp_path, tflite(adding([-1, 3])))) as text:
        code, details = await refused(text, request(tensor))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert message in details
        answer = await text.Infer(request(floats([[1, 2, 3]])))  # and the next one is served
        assert array(answer.tensors.tensors[0]).tolist() == [[2, 3, 4]]


async def test_an_input_may_not_be_missing_or_there_twice(tmp_path: Path) -> None:
    async with serve(spec(tmp_path, tflite(adding([1, 1])))) as text:
        assert "input 'x' is missing" in (await refused(text, request()))[1]
        twice = floats([[1]])
        assert "is input 'x' again" in (await refused(text, request(twice, twice)))[1]
        assert "takes tensors" in (await refused(text, pb.InferRequest(text="hello")))[1]


async def test_callers_at_once_get_their_own_answers(tmp_path: Path) -> None:
    async with serve(spec(tmp_path, tflite(adding([-1, 64])))) as text:
        sent = [np.full((1 + n % 3, 64), n, "<f4") for n in range(24)]
        answers = await asyncio.gather(*(text.Infer(request(floats(each))) for each in sent))
        for each, answer in zip(sent, answers, strict=True):
            assert (array(answer.tensors.tensors[0]) == each + 1).all()


def test_the_pool_computes_in_as_many_threads_as_it_has_interpreters(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(tflite(adding([1, 1])))
    model = LiteRtModel(path, threads=1, running=2)
    both = threading.Barrier(2, timeout=20)

    def call() -> None:
        with model._lent():  # both are lent at once, or the barrier breaks
            both.wait()

    threads = [threading.Thread(target=call) for _ in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not both.broken


async def test_a_state_is_not_kept_from_call_to_call(tmp_path: Path) -> None:
    """A basic recurrent layer, whose state is a variable tensor: y = relu(x + y)."""
    rnn = Graph(
        tensors=[
            Tensor("x", [1, 1]),
            Tensor("weights", data=np.ones((1, 1), np.float32)),
            Tensor("again", data=np.ones((1, 1), np.float32)),
            Tensor("bias", data=np.zeros(1, np.float32)),
            Tensor("state", [1, 1], variable=True),
            Tensor("y", [1, 1]),
        ],
        ops=[Op("RNN", ["x", "weights", "again", "bias", "state"], ["y"], _relu())],
        inputs=["x"],
        outputs=["y"],
    )
    path = tmp_path / "rnn.tflite"
    path.write_bytes(tflite(rnn))
    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    seen = []
    for _ in range(2):
        interpreter.set_tensor(0, np.ones((1, 1), np.float32))
        interpreter.invoke()
        seen.append(interpreter.get_tensor(5).item())
    assert seen == [1, 2], "the layer keeps its state in LiteRT itself"
    async with serve(spec(tmp_path, path.read_bytes())) as text:
        for _ in range(4):
            answer = await text.Infer(request(floats([[1]])))
            assert array(answer.tensors.tensors[0]).item() == 1


def _relu() -> Any:
    options = schema.RNNOptionsT()
    options.fusedActivationFunction = schema.ActivationFunctionType.RELU
    return options


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (b"not a model at all", "LiteRT cannot load model.tflite"),
        (tflite(adding([1, 4]))[:300], "LiteRT cannot load model.tflite"),
        (
            tflite(
                Graph([Tensor("x", [2]), Tensor("y", [2])], [Op("Mine", ["x"], ["y"])], "x", "y")
            ),
            "unresolved custom op: Mine",
        ),
        (tflite(adding([1 << 15, 1 << 15])), "inputs have 4294967296 bytes; a message may have"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_the_reason(
    tmp_path: Path, model: bytes, message: str
) -> None:
    with pytest.raises(InvalidModelError, match=message):
        pipelines.load(spec(tmp_path, model))


@pytest.mark.parametrize(
    ("graphs", "tried"), [([adding([1, 4])], 1), ([STRINGS], 1), (TWO, 0), ([adding([-1, 2])], 0)]
)
async def test_the_trial_of_a_good_model(
    tmp_path: Path, graphs: Sequence[Graph], tried: int
) -> None:
    """Only shapes that do not vary are tried: of others none is sure to be right."""
    loaded = pipelines.load(spec(tmp_path, tflite(*graphs)))
    assert len(loaded.trial) == tried
    await try_calls("tiny", loaded.handlers, loaded.trial, 30)


async def test_a_call_that_litert_refuses_leaves_the_others_alone(tmp_path: Path) -> None:
    """GATHER with an index that is not there."""
    gather = Graph(
        tensors=[
            Tensor("table", data=np.arange(4, dtype=np.float32)),
            Tensor("x", [1], "int32"),
            Tensor("y", [1]),
        ],
        ops=[Op("GATHER", ["table", "x"], ["y"], schema.GatherOptionsT())],
        inputs=["x"],
        outputs=["y"],
    )
    async with serve(spec(tmp_path, tflite(gather))) as text:
        wrong = pb.Tensor(name="x", data=np.array([99], "<i4").tobytes())
        for _ in range(3):
            code, message = await refused(text, request(wrong))
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert "LiteRT cannot compute with these inputs: gather index out of bounds" in message
        right = pb.Tensor(name="x", data=np.array([3], "<i4").tobytes())
        assert array((await text.Infer(request(right))).tensors.tensors[0]).tolist() == [3]


HAIR = SHARED / "models/hair_segmentation.tflite"


@pytest.mark.skipif(not HAIR.exists(), reason=f"{HAIR} is not here")
async def test_a_model_of_mediapipe_equals_litert_called_directly(tmp_path: Path) -> None:
    picture = np.random.default_rng(1).random((1, 512, 512, 4), np.float32)
    interpreter = Interpreter(model_path=str(HAIR))
    interpreter.allocate_tensors()
    interpreter.set_tensor(0, picture)
    interpreter.invoke()
    expected = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    async with serve(spec(tmp_path, HAIR.read_bytes())) as text:
        (output,) = (await text.Infer(request(floats(picture, "input_1")))).tensors.tensors
        assert np.abs(array(output) - expected).max() < 1e-4
