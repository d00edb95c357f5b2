"""Families of models that read images and text, held against transformers called directly."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ml import transformers_pb2 as pb
from shared.errors import InvalidModelError
from tests.support.pictures import picture, png
from tests.support.strange_models import change_json
from tests.support.text_pipeline import Tiny, serve, spec_of
from tests.support.tiny_multimodal import NEW, part, reference
from tests.support.tiny_visual import FAMILIES
from text_svc.worker.pipelines import load


@pytest.mark.parametrize("name", FAMILIES)
async def test_a_chat_with_an_image_is_that_of_transformers(tiny: Tiny, name: str) -> None:
    image = picture(0)
    wanted, prompt_tokens = reference(
        tiny(name), ("user", [part("image"), part("text", "what ?")]), images=[image]
    )
    message = pb.ChatMessage(role="user", content="what ?", images=[png(image)])
    async with serve(spec_of(tiny(name), "vlm")) as stub:
        request = pb.ChatRequest(messages=[message], temperature=0, max_tokens=NEW)
        answers = [answer async for answer in stub.ChatCompletion(request)]
        options = {"max_new_tokens": str(NEW)}
        infer = pb.InferRequest(image=png(image), prompt="what ?", options=options)
        inferred = await stub.Infer(infer)
        other = pb.ChatMessage(role="user", content="what ?", images=[png(picture(1))])
        request = pb.ChatRequest(messages=[other], temperature=0, max_tokens=NEW)
        others = [answer async for answer in stub.ChatCompletion(request)]
    assert "".join(answer.content for answer in answers) == wanted
    assert answers[-1].usage.prompt_tokens == prompt_tokens
    assert inferred.text == wanted.strip()
    assert wanted
    assert len(others) > 1


def test_an_image_processor_that_needs_torchvision_is_named(tiny: Tiny, tmp_path: Path) -> None:
    """Not a failure at each call, and not an answer of another processor."""
    folder = shutil.copytree(tiny("llava-chat"), tmp_path / "llama4")
    for file in ("processor_config.json", "preprocessor_config.json"):
        if (folder / file).exists():
            change_json(
                folder / file,
                processor_class="Llama4Processor",
                image_processor_type="Llama4ImageProcessorFast",
                image_processor={"image_processor_type": "Llama4ImageProcessorFast"},
            )
    with pytest.raises(InvalidModelError, match="for torchvision alone"):
        load(spec_of(folder, "vlm"))


@pytest.mark.parametrize("kind", ["phi3_v", "internvl_chat"])
def test_a_repository_with_code_of_its_own_is_refused_with_the_reason(
    tmp_path: Path, kind: str
) -> None:
    code = {"AutoConfig": "configuration.Config", "AutoModelForCausalLM": "modeling.Model"}
    change_json(tmp_path / "config.json", model_type=kind, auto_map=code)
    with pytest.raises(InvalidModelError, match=rf"has no {kind} models.*code of its own"):
        load(spec_of(tmp_path, "vlm"))
