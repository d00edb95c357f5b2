"""Pipelines of images behind Infer, over gRPC, compared with transformers called directly."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from tests.support.pictures import picture, png
from tests.support.text_pipeline import Tiny, infer, scores


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return picture(0)


async def test_clip(tiny: Tiny, image: Image.Image) -> None:
    folder = tiny("clip")
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    texts = [f"This is a photo of {label}." for label in ("cat", "dog")]
    inputs = processor(text=texts, images=image, padding=True, return_tensors="pt")
    with torch.inference_mode():
        output = model(**inputs)
    wanted = dict(zip(("cat", "dog"), output.logits_per_image[0].softmax(-1).tolist(), strict=True))
    response = await infer(folder, "clip", image=png(image), labels=["cat", "dog"])
    assert scores(response) == pytest.approx(wanted, abs=1e-5)
    image = await infer(folder, "clip", image=png(image))
    assert image.vector.values == pytest.approx(output.image_embeds[0].tolist(), abs=1e-5)
    text = await infer(folder, "zero-shot-image-classification", text=texts[1])
    assert text.vector.values == pytest.approx(output.text_embeds[1].tolist(), abs=1e-5)


async def test_clip_with_many_labels(tiny: Tiny, image: Image.Image) -> None:
    folder, labels = tiny("clip"), [f"cat {number}" for number in range(300)]
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    texts = [f"This is a photo of {label}." for label in labels]
    inputs = processor(text=texts, images=image, padding=True, return_tensors="pt")
    with torch.inference_mode():
        wanted = model(**inputs).logits_per_image[0].softmax(-1).tolist()
    response = await infer(folder, "clip", image=png(image), labels=labels)
    assert scores(response) == pytest.approx(dict(zip(labels, wanted, strict=True)), abs=1e-5)


async def test_image_classification(tiny: Tiny, image: Image.Image) -> None:
    folder = tiny("vit")
    model = transformers.ViTForImageClassification.from_pretrained(folder).eval()
    images = transformers.ViTImageProcessorPil.from_pretrained(folder)
    with torch.inference_mode():
        logits = model(**images(image, return_tensors="pt")).logits[0].softmax(-1)
    wanted = {f"LABEL_{index}": float(score) for index, score in enumerate(logits)}
    response = await infer(folder, "image-classification", image=png(image))
    assert scores(response) == pytest.approx(wanted, abs=1e-5)


async def test_a_classifier_whose_processor_names_torchvision(
    tiny: Tiny, image: Image.Image
) -> None:
    folder = tiny("segformer-classifier")
    model = transformers.SegformerForImageClassification.from_pretrained(folder).eval()
    side = np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR), np.float32) / 255
    pixels = (side - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    inputs = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    with torch.inference_mode():
        logits = model(pixel_values=inputs).logits[0].softmax(-1)
    wanted = dict(zip(("cat", "dog", "sofa"), logits.tolist(), strict=True))
    response = await infer(folder, "image-classification", image=png(image))
    assert scores(response) == pytest.approx(wanted, abs=1e-5)


async def test_image_to_text(tiny: Tiny, image: Image.Image) -> None:
    folder = tiny("blip")
    model = transformers.BlipForConditionalGeneration.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    ids = model.generate(**processor(images=image, return_tensors="pt"), max_new_tokens=5)
    wanted = processor.decode(ids[0], skip_special_tokens=True).strip()
    response = await infer(folder, "image-to-text", image=png(image), options={"max_new_tokens": 5})
    assert response.text == wanted
    assert wanted


async def test_visual_language(tiny: Tiny, image: Image.Image) -> None:
    folder = tiny("llava")
    model = transformers.LlavaForConditionalGeneration.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    inputs = processor(text="<image>\nwhat ?", images=image, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=5)[0, inputs["input_ids"].shape[1] :]
    wanted = processor.decode(ids, skip_special_tokens=True).strip()
    response = await infer(
        folder, "vlm", image=png(image), prompt="what ?", options={"max_new_tokens": 5}
    )
    assert response.text == wanted
    assert wanted


@pytest.mark.parametrize("task", ["<OCR>", "<OD>", "<OCR_WITH_REGION>"])
async def test_florence2(tiny: Tiny, image: Image.Image, task: str) -> None:
    folder = tiny("florence2")
    model = transformers.Florence2ForConditionalGeneration.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    inputs = processor(text=task, images=image, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=30, num_beams=1, do_sample=False)
    text = processor.decode(ids[0], skip_special_tokens=False)
    answer = processor.post_process_generation(text, task=task, image_size=image.size)[task]
    response = await infer(
        folder, "florence-2", image=png(image), prompt=task, options={"max_new_tokens": 30}
    )
    if isinstance(answer, str):
        assert response.text == answer.strip()
        return
    boxes = answer.get("bboxes") or answer.get("quad_boxes") or []
    assert [region.label for region in response.regions] == answer["labels"][: len(boxes)]
    for region, box in zip(response.regions, boxes, strict=True):
        sides = [image.size[place % 2] for place in range(len(box))]
        pixels = [point * side for point, side in zip(region.points, sides, strict=True)]
        assert pixels == pytest.approx(box, abs=1), "transformers gives whole pixels"


async def test_janus_sees(tiny: Tiny, image: Image.Image) -> None:
    folder = tiny("janus")
    model = transformers.JanusForConditionalGeneration.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    inputs = processor(text="<image_placeholder>\nwhat ?", images=image, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=5)[0, inputs["input_ids"].shape[1] :]
    wanted = processor.decode(ids, skip_special_tokens=True).strip()
    response = await infer(
        folder, "janus", image=png(image), prompt="what ?", options={"max_new_tokens": 5}
    )
    assert response.text == wanted


async def test_janus_draws(tiny: Tiny) -> None:
    folder = tiny("janus")
    model = transformers.JanusForConditionalGeneration.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    inputs = processor(text="a cat", generation_mode="image", return_tensors="pt")
    with torch.inference_mode():
        ids = model.generate(**inputs, generation_mode="image", do_sample=False)
        pixels = model.decode_image_tokens(ids)[0]
    images = processor.image_processor
    mean, deviation = torch.tensor(images.image_mean), torch.tensor(images.image_std)
    wanted = ((pixels * deviation + mean) * 255).clamp(0, 255).to(torch.uint8).numpy()
    response = await infer(folder, "janus", text="a cat")
    drawn = np.asarray(Image.open(io.BytesIO(response.image.data)))
    assert drawn.shape == wanted.shape
    assert np.abs(drawn.astype(int) - wanted.astype(int)).max() <= 1
