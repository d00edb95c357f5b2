"""Segmentation, and masks of points and boxes, against transformers."""

from __future__ import annotations

import io
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers as t
from PIL import Image

from ml import transformers_pb2 as pb
from shared.errors import CallCancelledError, InvalidModelError, ResourceExhaustedError
from tests.support.pictures import picture, png
from tests.support.text_pipeline import Tiny, infer, serve, spec_of
from tests.support.tiny_vision import SIDE, sam2_config, save_settings
from text_svc.formats.cleaned import cleaned_folder
from text_svc.options import LoadOptions
from text_svc.torch_models.pretrained import Pretrained
from text_svc.worker import pipelines
from text_svc.worker.infer.regions import MaskWriter, run_lengths
from text_svc.worker.media.image_processors import read_image_processor
from text_svc.worker.pipelines import image_segmentation
from text_svc.worker.pipelines.image_segmentation import Segmenter, likeliest
from text_svc.worker.pipelines.mask_generation import (
    MAX_POINTS,
    MAX_PROMPTS,
    MaskGenerationOptions,
    MaskGenerator,
)


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return picture(0)


def pixels(mask: pb.ImageMask) -> npt.NDArray[np.bool_]:
    """A mask of either format."""
    if mask.png:
        file = Image.open(io.BytesIO(mask.png))
        assert file.mode == "1"
        made = np.asarray(file)
    else:
        values = np.arange(len(mask.runs)) % 2 == 1
        made = np.repeat(values, mask.runs).reshape((mask.height, mask.width), order="F")
    assert made.shape == (mask.height, mask.width)
    return made


def settings_of(folder: Path) -> Any:
    with (
        tempfile.TemporaryDirectory() as scratch,
        cleaned_folder(folder, Path(scratch)) as cleaned,
    ):
        return read_image_processor(Pretrained(cleaned, LoadOptions()))


def transformers_processor(folder: Path) -> Any:
    """The class of transformers that makes labels of pixels of a model's outputs."""
    kind = type(settings_of(folder))
    name = "post_process_semantic_segmentation"
    return next(each for each in kind.__mro__ if name in vars(each))


def segmented(folder: Path, image: Image.Image, subtask: str, **options: Any) -> Any:
    """What transformers makes of an image: segment or label of each pixel, and the segments."""
    processor = settings_of(folder)
    config = t.AutoConfig.from_pretrained(folder)
    model = getattr(t, config.architectures[0]).from_pretrained(folder).eval()
    if config.model_type == "oneformer":
        inputs = processor(images=[image], task_inputs=[subtask], return_tensors="pt")
        tokenizer = t.AutoTokenizer.from_pretrained(folder)
        text = tokenizer(
            [f"the task is {subtask}"], padding="max_length", max_length=77, return_tensors="pt"
        )
        inputs["task_inputs"] = text["input_ids"]
    else:
        inputs = processor(images=[image], return_tensors="pt")
    with torch.inference_mode():
        outputs = model(**inputs)
    post_process = getattr(processor, f"post_process_{subtask}_segmentation")
    (found,) = post_process(outputs, target_sizes=[(image.height, image.width)], **options)
    return found


ANY = {"threshold": 0.1, "mask_threshold": 0.3, "overlap_mask_area_threshold": 0.1}


@pytest.mark.parametrize(
    ("name", "subtask"),
    [
        *[("mask2former", subtask) for subtask in ("panoptic", "instance")],
        *[("maskformer", subtask) for subtask in ("panoptic", "instance")],
        *[("detr-panoptic", subtask) for subtask in ("panoptic", "instance")],
        ("eomt", "panoptic"),
        ("oneformer", "panoptic"),
    ],
)
async def test_segments(tiny: Tiny, image: Image.Image, name: str, subtask: str) -> None:
    folder = tiny(name)
    found = segmented(folder, image, subtask, **ANY)
    wanted = sorted(found["segments_info"], key=lambda each: -each["score"])
    assert wanted
    given = ANY if subtask == "panoptic" else {**ANY, "subtask": subtask, "mask_format": "rle"}
    response = await infer(folder, "image-segmentation", image=png(image), options=given)
    names = t.AutoConfig.from_pretrained(folder).id2label
    assert [each.label for each in response.regions] == [names[each["label_id"]] for each in wanted]
    assert [each.score for each in response.regions] == pytest.approx(
        [each["score"] for each in wanted], abs=1e-5
    )
    for region, each in zip(response.regions, wanted, strict=True):
        assert bool(region.mask.png) == (subtask == "panoptic")
        expected = (found["segmentation"] == each["id"]).numpy()
        assert (pixels(region.mask) == expected).all()


@pytest.mark.parametrize(
    "name", ["segformer", "mask2former", "maskformer", "eomt-semantic", "oneformer"]
)
async def test_labels_of_pixels(
    tiny: Tiny, image: Image.Image, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny(name)
    wanted = segmented(folder, image, "semantic").numpy()
    assert len(np.unique(wanted)) > 1
    if name != "eomt-semantic":  # all labels of a large image at once would take gigabytes
        own = transformers_processor(folder)
        monkeypatch.delattr(own, "post_process_semantic_segmentation")
        monkeypatch.setattr(Segmenter, "_can", lambda *_: True)
    response = await infer(
        folder, "image-segmentation", image=png(image), options={"subtask": "semantic"}
    )
    names = t.AutoConfig.from_pretrained(folder).id2label
    assert [each.label for each in response.regions] == [names[each] for each in np.unique(wanted)]
    for region, label in zip(response.regions, np.unique(wanted), strict=True):
        assert (pixels(region.mask) == (wanted == label)).all()
        rows, columns = np.nonzero(wanted == label)
        left, top, right, bottom = region.points
        assert (round(left * 70), round(right * 70)) == (columns.min(), columns.max() + 1)
        assert (round(top * 60), round(bottom * 60)) == (rows.min(), rows.max() + 1)


def test_labels_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(7, 5, 6, generator=torch.Generator().manual_seed(0))
    whole = torch.nn.functional.interpolate(logits[None], (33, 41), mode="bilinear")[0].argmax(0)
    monkeypatch.setattr(image_segmentation, "MAX_RESIZED", 2 * 33 * 41)
    assert likeliest(logits, (33, 41), threading.Event()).equal(whole)


@pytest.mark.parametrize(
    ("name", "subtask", "words"),
    [
        ("segformer", "panoptic", "must be one of semantic"),
        ("eomt-semantic", "instance", "must be one of semantic"),
        ("oneformer", "instance", "must be one of panoptic, semantic"),
        ("segformer", "all", "subtask"),
        ("eomt", "instance", "mask_threshold has no effect on this model's instance"),
    ],
)
async def test_segmentation_that_a_model_does_not_do(
    tiny: Tiny, image: Image.Image, name: str, subtask: str, words: str
) -> None:
    options = {"subtask": subtask, "mask_threshold": 0.5}
    with pytest.raises(grpc.aio.AioRpcError, match=words) as caught:
        await infer(tiny(name), "image-segmentation", image=png(image), options=options)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_image_whose_masks_would_be_too_large(tiny: Tiny, image: Image.Image) -> None:
    spec = spec_of(tiny("segformer"), "image-segmentation", max_map_pixels=70 * 60 - 1)
    async with serve(spec) as stub:
        with pytest.raises(grpc.aio.AioRpcError, match="70 x 60 pixels; the limit is 4199"):
            await stub.Infer(pb.InferRequest(image=png(image)))


async def test_masks_that_are_too_large_together(tiny: Tiny, image: Image.Image) -> None:
    spec = spec_of(tiny("segformer"), "image-segmentation", max_message_bytes=500)
    async with serve(spec) as stub:
        for mask_format in ("png", "rle"):
            request = pb.InferRequest(image=png(image), options={"mask_format": mask_format})
            with pytest.raises(grpc.aio.AioRpcError, match="limit of 500") as caught:
                await stub.Infer(request)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_model_that_is_none_of_segmentation(tiny: Tiny) -> None:
    with pytest.raises(InvalidModelError, match="no model of image segmentation of type 'vit'"):
        pipelines.load(spec_of(tiny("vit"), "image-segmentation"))


def test_a_caller_who_has_gone_stops_the_model(tiny: Tiny, image: Image.Image) -> None:
    model = Segmenter(spec_of(tiny("segformer"), "image-segmentation"))
    layers = []
    model.model.decode_head.register_forward_pre_hook(lambda *_: layers.append("head"))
    gone = threading.Event()
    gone.set()
    inputs = model.processor(images=[image], return_tensors="pt")
    with pytest.raises(CallCancelledError):
        model.outputs(inputs, gone)
    assert not layers
    model.outputs(inputs, threading.Event())
    assert layers


@pytest.mark.parametrize(
    ("mask", "runs"),
    [
        ([[0, 1, 1], [0, 0, 1]], [2, 1, 1, 2]),
        ([[1, 0], [1, 0]], [0, 2, 2]),
        ([[0, 0]], [2]),
        ([[1, 1]], [0, 2]),
    ],
)
def test_run_lengths(mask: list[list[int]], runs: list[int]) -> None:
    assert run_lengths(np.array(mask, bool)).tolist() == runs


def test_the_writer_counts_all_masks_of_an_answer() -> None:
    writer, mask = MaskWriter("rle", 60), np.eye(8, dtype=bool)
    assert writer.region(mask, label="a").points == [0, 0, 1, 1]
    with pytest.raises(ResourceExhaustedError, match="limit of 60"):
        writer.region(mask)
    assert not MaskWriter("rle", 60).region(np.zeros((2, 3), bool)).points


# Points and boxes.


def prompt(*points: tuple[float, float], box: list[float] | None = None) -> pb.RegionPrompt:
    """The first point shows what is meant, the others what is not."""
    return pb.RegionPrompt(
        points=[
            pb.PromptPoint(x=x, y=y, outside=bool(index)) for index, (x, y) in enumerate(points)
        ],
        box=box or [],
    )


PROMPTS = [
    prompt((0.25, 0.5)),
    prompt((0.25, 0.5), (0.9, 0.125)),
    prompt(box=[0.1, 0.2, 0.7, 0.9]),
    prompt((0.5, 0.5), box=[0.1, 0.2, 0.7, 0.9]),
]


def shown(each: pb.RegionPrompt, image: Image.Image) -> dict[str, Any]:
    """A prompt as transformers' processor takes it, in pixels."""
    given: dict[str, Any] = {}
    if each.points:
        points = [[point.x * image.width, point.y * image.height] for point in each.points]
        given["input_points"] = [[points]]
        given["input_labels"] = [[[int(not point.outside) for point in each.points]]]
    if each.box:
        sides = (image.width, image.height) * 2
        given["input_boxes"] = [[[part * side for part, side in zip(each.box, sides, strict=True)]]]
    return given


@pytest.mark.parametrize("name", ["sam", "sam-hq"])
@pytest.mark.parametrize("multimask", [True, False])
async def test_masks_of_prompts(tiny: Tiny, image: Image.Image, name: str, multimask: bool) -> None:
    folder = tiny(name)
    processor = (t.SamProcessor if name == "sam" else t.SamHQProcessor)(settings_of(folder))
    model = (t.SamModel if name == "sam" else t.SamHQModel).from_pretrained(folder).eval()
    response = await infer(
        folder,
        "mask-generation",
        image=png(image),
        region_prompts=PROMPTS,
        options={"multimask_output": multimask},
    )
    for number, each in enumerate(PROMPTS):
        inputs = processor(images=image, **shown(each, image), return_tensors="pt")
        for key in ("input_points", "input_boxes"):
            if key in inputs:
                inputs[key] = inputs[key].float()
        sizes = inputs.pop("original_sizes"), inputs.pop("reshaped_input_sizes")
        with torch.inference_mode():
            outputs = model(**inputs, multimask_output=multimask)
        (masks,) = processor.post_process_masks(outputs.pred_masks, *sizes)
        compare([r for r in response.regions if r.prompt == number], masks[0], outputs.iou_scores)


def compare(regions: list[pb.ImageRegion], masks: torch.Tensor, scores: torch.Tensor) -> None:
    """Holds the masks of one prompt against transformers', the best first."""
    order = scores.flatten().argsort(descending=True, stable=True).tolist()
    assert [each.score for each in regions] == pytest.approx(
        [float(scores.flatten()[index]) for index in order], abs=1e-4
    )
    assert masks.any()
    assert not masks.all()
    for region, index in zip(regions, order, strict=True):
        differ = (pixels(region.mask) != masks[index].numpy()).mean()
        assert differ < 0.005, "a pixel whose logit is about 0 may fall to either side"


@pytest.mark.parametrize("form", ["sam2", "sam2_video"])
async def test_masks_of_prompts_by_sam2(
    tiny: Tiny, tmp_path: Path, image: Image.Image, form: str
) -> None:
    """The published SAM 2 has the configuration of its model of videos."""
    folder = tiny("sam2")
    model = t.Sam2Model.from_pretrained(folder).eval()
    if form == "sam2_video":
        folder = tmp_path / "video"
        shutil.copytree(tiny("sam2"), folder)
        t.Sam2VideoConfig(**sam2_config(), architectures=["Sam2VideoModel"]).save_pretrained(folder)
    pixel_values = settings_of(folder)(images=image)["pixel_values"]
    response = await infer(folder, "mask-generation", image=png(image), region_prompts=PROMPTS)
    for number, each in enumerate(PROMPTS):
        given = {
            key: torch.tensor(value, dtype=torch.int64 if "labels" in key else torch.float32)
            for key, value in shown(each, image).items()
        }
        sides = torch.tensor([SIDE / image.width, SIDE / image.height])
        if "input_points" in given:
            given["input_points"] *= sides
        if "input_boxes" in given:
            given["input_boxes"] *= sides.repeat(2)
        with torch.inference_mode():
            outputs = model(pixel_values=pixel_values, **given)
        masks = torch.nn.functional.interpolate(
            outputs.pred_masks[0], (image.height, image.width), mode="bilinear"
        )[0]
        compare([r for r in response.regions if r.prompt == number], masks > 0, outputs.iou_scores)


def test_the_next_prompts_of_an_image_cost_little(tiny: Tiny, image: Image.Image) -> None:
    generator = MaskGenerator(spec_of(tiny("sam"), "mask-generation"))
    seen = []
    generator.model.vision_encoder.register_forward_pre_hook(lambda *_: seen.append(1))

    def regions(picture: Image.Image, prompts: list[pb.RegionPrompt]) -> list[pb.ImageRegion]:
        request = pb.InferRequest(image=png(picture), region_prompts=prompts)
        return list(generator.infer(request, MaskGenerationOptions(), threading.Event()).regions)

    first, both = regions(image, PROMPTS[:1]), regions(image, PROMPTS[1::-1])
    assert len(seen) == 1
    assert [each.mask for each in both[3:]] == [each.mask for each in first]
    regions(picture(1), PROMPTS[:1])
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ([], "region_prompts is empty"),
        ([pb.RegionPrompt()], r"region_prompts\[0\] has neither points nor a box"),
        ([PROMPTS[0], prompt((0.5, 1.5))], r"region_prompts\[1\] must be from 0 to 1"),
        ([prompt((float("nan"), 0.5))], "must be from 0 to 1"),
        ([prompt(box=[0.1, 0.2, 0.3])], "has 3 numbers; it must have 4"),
        ([prompt(box=[0.5, 0.2, 0.3, 0.9])], "right after left"),
        ([prompt(*[(0.5, 0.5)] * (MAX_POINTS + 1))], "has 65 entries; the limit is 64"),
        (PROMPTS[:1] * (MAX_PROMPTS + 1), "has 65 entries; the limit is 64"),
    ],
)
async def test_prompts_that_show_nothing(
    tiny: Tiny, image: Image.Image, prompts: list[pb.RegionPrompt], words: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match=words) as caught:
        await infer(tiny("sam"), "mask-generation", image=png(image), region_prompts=prompts)
    exhausted = "limit is" in words
    code = grpc.StatusCode.RESOURCE_EXHAUSTED if exhausted else grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.code() is code


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"size": {"height": 5000, "width": 64}}, "sides must be from 1 to 4096"),
        ({"size": {"longest_edge": 64}}, "size must have height and width"),
        ({"resample": 1}, "resample be 2 or 3"),
        ({"do_center_crop": True}, "do_center_crop is not done"),
        ({"image_mean": [0.5]}, "image_mean must be three numbers"),
    ],
)
def test_settings_that_are_not_what_the_processor_does(
    tiny: Tiny, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny("sam2"), folder)
    save_settings(folder, image_processor_type="Sam2ImageProcessor", **settings)
    with pytest.raises(InvalidModelError, match=words):
        pipelines.load(spec_of(folder, "mask-generation"))
