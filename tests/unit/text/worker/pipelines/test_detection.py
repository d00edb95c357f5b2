"""Object detection, with labels of the model's own or of the caller's, against transformers."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import torch
import transformers as t
from PIL import Image

from ml import transformers_pb2 as pb
from shared.errors import InvalidModelError
from tests.support.pictures import picture, png
from tests.support.strange_models import change_json
from tests.support.text_pipeline import Tiny, infer, spec_of
from tests.support.tiny_vision import LABELS
from text_svc.options import LoadOptions
from text_svc.torch_models.pretrained import Pretrained
from text_svc.worker import pipelines
from text_svc.worker.infer.labels import label_names
from text_svc.worker.media.processors import read_processor

DETECTORS = ["detr", "conditional-detr", "yolos", "rt-detr", "d-fine"]


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return picture(0)


def found(response: pb.InferResponse, image: Image.Image) -> list[tuple[str, float, list[float]]]:
    """Labels, scores and boxes in pixels."""
    sides = (image.width, image.height) * 2
    return [
        (
            each.label,
            each.score,
            [part * side for part, side in zip(each.points, sides, strict=True)],
        )
        for each in response.regions
    ]


def inside(box: list[float], image: Image.Image) -> list[float]:
    """A box without what is beside the image."""
    sides = (image.width, image.height) * 2
    return [min(max(value, 0), side) for value, side in zip(box, sides, strict=True)]


def same(response: pb.InferResponse, wanted: list[dict[str, Any]], image: Image.Image) -> None:
    """Holds an answer against one of transformers' pipelines, which gives whole pixels."""
    wanted = sorted(wanted, key=lambda each: -each["score"])
    got = found(response, image)
    assert [score for _, score, _ in got] == pytest.approx(
        [each["score"] for each in wanted], abs=1e-5
    )
    assert [label for label, _, _ in got] == [each["label"] for each in wanted]
    for (_, _, box), each in zip(got, wanted, strict=True):
        expected = [each["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")]
        assert box == pytest.approx(inside(expected, image), abs=1)


@pytest.mark.parametrize("name", DETECTORS)
async def test_objects(tiny: Tiny, image: Image.Image, name: str) -> None:
    folder = tiny(name)
    reference = t.pipeline("object-detection", model=str(folder))
    wanted = reference(image, threshold=0.05)
    assert len(wanted) > 2
    response = await infer(
        folder, "object-detection", image=png(image), options={"threshold": 0.05}
    )
    same(response, wanted, image)
    assert {each.label for each in response.regions} <= set(LABELS.values())
    best = await infer(
        folder, "object-detection", image=png(image), options={"threshold": 0, "top_k": 2}
    )
    assert [each.score for each in best.regions] == [each.score for each in response.regions[:2]]


async def test_a_threshold_that_nothing_reaches(tiny: Tiny, image: Image.Image) -> None:
    response = await infer(
        tiny("detr"), "object-detection", image=png(image), options={"threshold": 1}
    )
    assert response == pb.InferResponse()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top_k": 5000}, "top_k"),
        ({"threshold": "nan"}, "threshold"),
        ({"threshold": 2}, "threshold"),
        ({"limit": 1}, "accepted options are threshold, top_k"),
    ],
)
async def test_options_out_of_range(
    tiny: Tiny, image: Image.Image, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match=words) as caught:
        await infer(tiny("detr"), "object-detection", image=png(image), options=options)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_numbers_that_are_none_are_no_empty_answer(
    tiny: Tiny, tmp_path: Path, image: Image.Image
) -> None:
    """Scores that are NaN are below each threshold, and would say that there is nothing."""
    folder = tmp_path / "broken"
    shutil.copytree(tiny("detr"), folder)
    model = t.DetrForObjectDetection.from_pretrained(folder)
    with torch.no_grad():
        model.class_labels_classifier.bias.fill_(torch.nan)
    model.save_pretrained(folder)
    with pytest.raises(grpc.aio.AioRpcError, match="not numbers") as caught:
        await infer(folder, "object-detection", image=png(image))
    assert caught.value.code() is grpc.StatusCode.INTERNAL


def test_a_backbone_of_timm_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "timm"
    shutil.copytree(tiny("detr"), folder)
    change_json(
        folder / "config.json",
        use_timm_backbone=True,
        backbone="resnet50",
        backbone_config=None,
        use_pretrained_backbone=False,
    )
    with pytest.raises(InvalidModelError, match=r"'resnet50' is a model of timm.*no_timm"):
        pipelines.load(spec_of(folder, "object-detection"))


def test_a_processor_that_needs_torchvision_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "torchvision"
    shutil.copytree(tiny("rt-detr"), folder)
    change_json(
        folder / "preprocessor_config.json", image_processor_type="PPDocLayoutV3ImageProcessor"
    )
    with pytest.raises(InvalidModelError, match="PPDocLayoutV3ImageProcessor, only on torchvision"):
        pipelines.load(spec_of(folder, "object-detection"))


@pytest.mark.parametrize("name", ["owlvit", "owlv2"])
async def test_objects_that_the_caller_names(tiny: Tiny, image: Image.Image, name: str) -> None:
    folder, labels = tiny(name), ["a cat", "a red sofa"]
    processor = read_processor(Pretrained(folder, LoadOptions()))
    model = t.AutoModelForZeroShotObjectDetection.from_pretrained(folder).eval()
    inputs = processor(text=[labels], images=image, padding="max_length", return_tensors="pt")
    with torch.inference_mode():
        outputs = model(**inputs)
    (wanted,) = processor.post_process_grounded_object_detection(
        outputs, threshold=0.4, target_sizes=[(image.height, image.width)], text_labels=[labels]
    )
    assert len(wanted["scores"]) > 2
    response = await infer(
        folder,
        "zero-shot-object-detection",
        image=png(image),
        labels=labels,
        options={"threshold": 0.4},
    )
    order = wanted["scores"].argsort(descending=True, stable=True).tolist()
    got = found(response, image)
    assert [label for label, _, _ in got] == [wanted["text_labels"][index] for index in order]
    for (_, score, box), index in zip(got, order, strict=True):
        assert score == pytest.approx(float(wanted["scores"][index]), abs=1e-5)
        assert box == pytest.approx(inside(wanted["boxes"][index].tolist(), image), abs=1e-3)


async def test_grounding_dino(tiny: Tiny, image: Image.Image) -> None:
    folder, labels = tiny("grounding-dino"), ["A cat", "red sofa"]
    processor = read_processor(Pretrained(folder, LoadOptions()))
    model = t.AutoModelForZeroShotObjectDetection.from_pretrained(folder).eval()
    inputs = processor(text=[labels], images=image, return_tensors="pt")
    with torch.inference_mode():
        outputs = model(**inputs)
    (wanted,) = processor.post_process_grounded_object_detection(
        outputs, threshold=0.3, text_threshold=0.0, target_sizes=[(image.height, image.width)]
    )
    assert len(wanted["scores"]) > 2
    response = await infer(
        folder,
        "zero-shot-object-detection",
        image=png(image),
        labels=labels,
        options={"threshold": 0.3},
    )
    order = wanted["scores"].argsort(descending=True, stable=True).tolist()
    # By hand: the label whose tokens have the largest logit.
    tokens = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0].tolist())
    end = tokens.index(".")
    kept = outputs.logits[0][outputs.logits[0].sigmoid().amax(-1) > 0.3]
    first, second = kept[:, 1:end].amax(-1), kept[:, end + 1 : len(tokens) - 2].amax(-1)
    got = found(response, image)
    assert [label for label, _, _ in got] == [labels[int(second[i] > first[i])] for i in order]
    for (_, score, box), index in zip(got, order, strict=True):
        assert score == pytest.approx(float(wanted["scores"][index]), abs=1e-5)
        assert box == pytest.approx(inside(wanted["boxes"][index].tolist(), image), abs=1e-3)


@pytest.mark.parametrize(
    ("name", "labels", "words"),
    [
        ("owlvit", [], "labels must not be empty"),
        ("owlvit", ["cat", ""], "labels must not be empty"),
        ("owlvit", ["cat", "a b c d e f g h i j k l m n o p q"], r"labels\[1\] has \d+ tokens.*16"),
        ("owlvit", ["cat"] * 257, "257 labels; the limit is 256"),
        ("grounding-dino", ["a cat.", "dog"], r"labels\[0\] has a '\.'"),
        ("grounding-dino", ["a b c d e f g h i j k l m n o p"] * 4, r"labels have \d+ tokens.*64"),
    ],
)
async def test_labels_that_the_model_does_not_take(
    tiny: Tiny, image: Image.Image, name: str, labels: list[str], words: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match=words) as caught:
        await infer(tiny(name), "zero-shot-object-detection", image=png(image), labels=labels)
    too_many = len(labels) > 256
    code = grpc.StatusCode.RESOURCE_EXHAUSTED if too_many else grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.code() is code


def test_labels_that_no_answer_can_have() -> None:
    config = SimpleNamespace(id2label={0: "cat", 1: "\ud800"})
    with pytest.raises(InvalidModelError, match=r"label 1 of id2label .* '\\ud800'"):
        label_names(config)
