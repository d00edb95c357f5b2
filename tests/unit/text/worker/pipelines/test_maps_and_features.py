"""Depth, vectors of images, and images made of images, against transformers."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
import transformers as t
from PIL import Image

from ml import transformers_pb2 as pb
from shared.errors import InvalidModelError
from tests.support.pictures import picture, png
from tests.support.strange_models import change_json
from tests.support.text_pipeline import Tiny, infer, serve, spec_of
from text_svc.options import LoadOptions
from text_svc.torch_models.pretrained import Pretrained
from text_svc.worker import pipelines
from text_svc.worker.media.image_processors import read_image_processor


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return picture(0)


def processor_of(folder: Path) -> Any:
    return read_image_processor(Pretrained(folder, LoadOptions()))


def depth_of(folder: Path, image: Image.Image) -> np.ndarray[Any, Any]:
    """What transformers makes of an image."""
    model = t.AutoModelForDepthEstimation.from_pretrained(folder).eval()
    processor = processor_of(folder)
    with torch.inference_mode():
        outputs = model(**processor(images=image, return_tensors="pt"))
    (found,) = processor.post_process_depth_estimation(outputs, [(image.height, image.width)])
    depth: np.ndarray[Any, Any] = found["predicted_depth"].numpy()
    return depth


@pytest.mark.parametrize("name", ["depth-anything", "glpn", "zoedepth"])
async def test_depth(tiny: Tiny, image: Image.Image, name: str) -> None:
    folder = tiny(name)
    wanted = depth_of(folder, image)
    assert wanted.max() > wanted.min()
    response = await infer(
        folder, "depth-estimation", image=png(image), options={"depth_format": "float32"}
    )
    depth = response.depth
    assert (depth.width, depth.height) == image.size
    assert not depth.png
    values = np.frombuffer(depth.values, "<f4").reshape(60, 70)
    assert values == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    assert (depth.minimum, depth.maximum) == (values.min(), values.max())


async def test_depth_as_a_picture(tiny: Tiny, image: Image.Image) -> None:
    folder = tiny("depth-anything")
    wanted = depth_of(folder, image)
    depth = (await infer(folder, "depth-estimation", image=png(image))).depth
    assert not depth.values
    file = Image.open(io.BytesIO(depth.png))
    assert (file.format, file.mode) == ("PNG", "I;16")
    parts = np.asarray(file).astype(np.float64) / 65535
    made = depth.minimum + parts * (depth.maximum - depth.minimum)
    step = (depth.maximum - depth.minimum) / 65535
    assert made == pytest.approx(wanted, abs=step)
    assert (np.asarray(file).min(), np.asarray(file).max()) == (0, 65535)


async def test_depth_pro(tiny: Tiny, image: Image.Image) -> None:
    """By hand, as its processor in transformers, which needs torchvision, writes it."""
    folder = tiny("depth-pro")
    model = t.DepthProForDepthEstimation.from_pretrained(folder).eval()
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    pixels = torch.nn.functional.interpolate((pixels - 0.5) / 0.5, (64, 64), mode="bilinear")
    with torch.inference_mode():
        outputs = model(pixel_values=pixels)
    focal_length = 0.5 * 70 / torch.tan(0.5 * torch.deg2rad(outputs.field_of_view[0]))
    inverse = outputs.predicted_depth * 70 / focal_length
    inverse = torch.nn.functional.interpolate(inverse[None], (60, 70), mode="bilinear")[0, 0]
    response = await infer(
        folder, "depth-estimation", image=png(image), options={"depth_format": "float32"}
    )
    values = np.frombuffer(response.depth.values, "<f4").reshape(60, 70)
    assert 1 / values == pytest.approx(inverse.clamp(1e-4, 1e4).numpy(), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", ["vit-features", "resnet-features"])
async def test_vectors(tiny: Tiny, image: Image.Image, name: str) -> None:
    folder = tiny(name)
    model = t.AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        outputs = model(**processor_of(folder)(images=image, return_tensors="pt"))
    states = outputs.last_hidden_state[0]
    if states.dim() == 3:
        states = states.permute(1, 2, 0).reshape(-1, states.shape[0])

    async def answer(**options: Any) -> pb.InferResponse:
        return await infer(folder, "image-feature-extraction", image=png(image), options=options)

    pooled = outputs.pooler_output.flatten()
    assert (await answer()).vector.values == pytest.approx(pooled.tolist(), abs=1e-5)
    unit = (pooled / pooled.norm()).tolist()
    assert (await answer(normalize=True)).vector.values == pytest.approx(unit, abs=1e-5)
    first = await answer(pooling="first")
    assert first.vector.values == pytest.approx(states[0].tolist(), abs=1e-5)
    mean = await answer(pooling="mean")
    assert mean.vector.values == pytest.approx(states.mean(0).tolist(), abs=1e-5)
    every = await answer(pooling="none")
    assert not every.vector.values
    assert len(every.vectors) == len(states)
    for row, wanted in zip(every.vectors, states.tolist(), strict=True):
        assert row.values == pytest.approx(wanted, abs=1e-5)


async def test_a_pooler_that_the_weights_lack(
    tiny: Tiny, tmp_path: Path, image: Image.Image
) -> None:
    """transformers fills it with random numbers; a classifier's weights have none."""
    folder = tmp_path / "classifier"
    shutil.copytree(tiny("vit"), folder)
    with pytest.raises(grpc.aio.AioRpcError, match="must be one of first, mean, none") as caught:
        await infer(folder, "image-feature-extraction", image=png(image))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    model = t.ViTModel.from_pretrained(folder, add_pooling_layer=False).eval()
    with torch.inference_mode():
        states = model(**processor_of(folder)(images=image, return_tensors="pt")).last_hidden_state
    first = await infer(
        folder, "image-feature-extraction", image=png(image), options={"pooling": "first"}
    )
    assert first.vector.values == pytest.approx(states[0, 0].tolist(), abs=1e-5)


async def test_an_autoencoder_sees_the_whole_image(tiny: Tiny, image: Image.Image) -> None:
    """ViTMAE hides three quarters of an image, others each time, unless it is told not to."""
    folder = tiny("vit-mae")
    options = {"pooling": "none"}
    answers = [
        await infer(folder, "image-feature-extraction", image=png(image), options=options)
        for _ in range(2)
    ]
    assert answers[0] == answers[1]
    model = t.ViTMAEModel.from_pretrained(folder, mask_ratio=0.0).eval()
    inputs = processor_of(folder)(images=image, return_tensors="pt")
    with torch.inference_mode():
        outputs = model(**inputs, noise=torch.arange(16)[None].float())
    assert len(answers[0].vectors) == 17
    for row, wanted in zip(answers[0].vectors, outputs.last_hidden_state[0].tolist(), strict=True):
        assert row.values == pytest.approx(wanted, abs=1e-5)


async def test_dinov3(tiny: Tiny, image: Image.Image) -> None:
    """By hand, as its processor in transformers, which needs torchvision, writes it."""
    folder = tiny("dinov3")
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    pixels = torch.nn.functional.interpolate(pixels, (32, 32), mode="bilinear", antialias=True)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    model = t.DINOv3ViTModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        outputs = model(pixel_values=(pixels - mean[:, None, None]) / deviation[:, None, None])
    response = await infer(folder, "image-feature-extraction", image=png(image))
    assert response.vector.values == pytest.approx(outputs.pooler_output[0].tolist(), abs=1e-5)


async def test_an_enlarged_image(tiny: Tiny, image: Image.Image) -> None:
    """Without what the processor has filled up: 60 x 70 pixels are no whole windows of 8."""
    folder = tiny("swin2sr")
    model = t.Swin2SRForImageSuperResolution.from_pretrained(folder).eval()
    inputs = processor_of(folder)(images=image, return_tensors="pt")
    assert inputs["pixel_values"].shape[2:] != (60, 70)
    with torch.inference_mode():
        made = model(**inputs).reconstruction[0].clamp(0, 1).numpy()
    wanted = (made * 255).round().astype(np.uint8).transpose(1, 2, 0)[:120, :140]
    response = await infer(folder, "image-to-image", image=png(image))
    enlarged = np.asarray(Image.open(io.BytesIO(response.image.data)))
    assert enlarged.shape == wanted.shape
    assert np.abs(enlarged.astype(int) - wanted.astype(int)).max() <= 1


async def test_an_image_that_would_become_too_large(tiny: Tiny, image: Image.Image) -> None:
    spec = spec_of(tiny("swin2sr"), "image-to-image", max_map_pixels=140 * 120 - 1)
    async with serve(spec) as stub:
        with pytest.raises(grpc.aio.AioRpcError, match="140 x 120 pixels; the limit is") as caught:
            await stub.Infer(pb.InferRequest(image=png(image)))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_model_that_makes_no_colours(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "gray"
    shutil.copytree(tiny("swin2sr"), folder)
    config = t.AutoConfig.from_pretrained(folder, num_channels_out=1)
    t.Swin2SRForImageSuperResolution(config).save_pretrained(folder)
    with pytest.raises(InvalidModelError, match="images of 1 channels"):
        pipelines.load(spec_of(folder, "image-to-image"))


def test_a_model_of_timm_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "timm"
    shutil.copytree(tiny("vit"), folder)
    change_json(folder / "config.json", model_type="timm_wrapper", architecture="vit_tiny")
    with pytest.raises(InvalidModelError, match="timm"):
        pipelines.load(spec_of(folder, "image-feature-extraction"))
