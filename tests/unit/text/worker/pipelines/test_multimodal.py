"""GenerateText and ChatCompletion with images and sounds, compared with transformers itself."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from ml import transformers_pb2 as pb
from tests.support import tiny_multimodal, tiny_text
from tests.support.pictures import picture, png, png_header
from tests.support.text_pipeline import Tiny, serve, spec_of
from tests.support.tiny_multimodal import NEW, part, reference
from tests.support.waiting import until

RATE = 16_000
VISUAL = ("llava-chat", "smolvlm", "idefics3", "qwen2-vl", "gemma3")


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    size = int(RATE * seconds)
    return np.random.default_rng(seed).normal(0, 0.2, size).clip(-1, 1).astype(np.float32)


def sound(samples: np.ndarray) -> pb.AudioData:
    return pb.AudioData(data=samples.astype("<f4").tobytes(), format="pcm_f32le", rate=RATE)


async def chat(stub: Any, *messages: pb.ChatMessage) -> tuple[str, list[pb.ChatResponse]]:
    request = pb.ChatRequest(messages=messages, temperature=0, max_tokens=NEW)
    answers = [answer async for answer in stub.ChatCompletion(request)]
    return "".join(answer.content for answer in answers), answers


async def generate(stub: Any, **request: Any) -> tuple[str, pb.TextResponse]:
    request = {"temperature": 0, "max_length": NEW, **request}
    answers = [answer async for answer in stub.GenerateText(pb.TextRequest(**request))]
    return "".join(answer.text for answer in answers), answers[-1]


@pytest.mark.parametrize("name", VISUAL)
async def test_a_chat_with_images_is_that_of_transformers(tiny: Tiny, name: str) -> None:
    folder, image = tiny(name), part("image")
    first, second, third = map(picture, range(3))
    wanted, prompt_tokens = reference(
        folder,
        ("system", [part("text", "be brief")]),
        ("user", [image, image, part("text", "what ?")]),
        ("assistant", [part("text", "a cat")]),
        ("user", [part("text", "and "), image, part("text", " ?")]),
        images=[[first, second, third]],
    )
    inline = {"gemma3": "<start_of_image>", "qwen2-vl": "<|image_pad|>"}.get(name, "<image>")
    async with serve(spec_of(folder, "image-text-to-text")) as stub:
        text, answers = await chat(
            stub,
            pb.ChatMessage(role="system", content="be brief"),
            pb.ChatMessage(role="user", content="what ?", images=[png(first), png(second)]),
            pb.ChatMessage(role="assistant", content="a cat"),
            pb.ChatMessage(role="user", content=f"and {inline} ?", images=[png(third)]),
        )
        other, _ = await chat(
            stub, pb.ChatMessage(role="user", content="what ?", images=[png(second)])
        )
    assert text == wanted
    assert text != other, "the images matter"
    assert len(answers) > 2, "it streams"
    assert [answer.done for answer in answers] == [False] * (len(answers) - 1) + [True]
    assert answers[-1].usage.prompt_tokens == prompt_tokens
    assert answers[-1].usage.generated_tokens == NEW
    assert answers[-1].finish_reason == "length"


async def test_a_chat_with_sounds_is_that_of_transformers(tiny: Tiny) -> None:
    folder, first, second = tiny("qwen2-audio"), noise(1), noise(0.5, seed=1)
    wanted, prompt_tokens = reference(
        folder,
        ("user", [part("audio"), part("audio"), part("text", "which is louder ?")]),
        audio=[first, second],
        sampling_rate=RATE,
    )
    async with serve(spec_of(folder, "audio-text-to-text")) as stub:
        message = pb.ChatMessage(
            role="user", content="which is louder ?", audio=[sound(first), sound(second)]
        )
        text, answers = await chat(stub, message)
        infer = pb.InferRequest(
            prompt="what ?", audio=sound(first), options={"max_new_tokens": "8"}
        )
        heard = await stub.Infer(infer)
        streamed, _ = await generate(stub, prompt="what ?", audio=[sound(first)])
        long = pb.ChatMessage(role="user", audio=[sound(noise(31))])
        with pytest.raises(grpc.aio.AioRpcError, match="longer than the limit of 30 s"):
            await chat(stub, long)
    assert text == wanted
    assert answers[-1].usage.prompt_tokens == prompt_tokens
    assert heard.text == streamed.strip()


@pytest.mark.parametrize("name", VISUAL)
async def test_generate_text_with_images(tiny: Tiny, name: str) -> None:
    folder, image, mark = tiny(name), picture(0), tiny_multimodal.MEDIA_TOKENS[name]
    wanted, _ = reference(folder, ("user", [part("image"), part("text", "what ?")]), images=[image])
    prompt = f"<s>[user] {mark}what ?\n[assistant] "
    async with serve(spec_of(folder, "vlm")) as stub:
        templated, last = await generate(stub, prompt="what ?", images=[png(image)])
        marked, _ = await generate(stub, prompt=prompt, images=[png(image)])
        infer = pb.InferRequest(prompt="what ?", image=png(image), options={"max_new_tokens": "8"})
        inferred = await stub.Infer(infer)
        alone, _ = await generate(stub, prompt="what ?")
        stop = templated[2:5]
        stopped, ended = await generate(stub, prompt="what ?", images=[png(image)], stop=[stop])
    assert templated == marked == wanted
    assert inferred.text == wanted.strip()
    assert last.tokens_generated == NEW
    assert alone
    assert stopped == wanted[: wanted.index(stop)]
    assert ended.finish_reason == "stop"


async def test_llava_without_a_chat_template_completes(tiny: Tiny) -> None:
    folder, image = tiny("llava"), picture(0)
    async with serve(spec_of(folder, "vlm")) as stub:
        before, _ = await generate(stub, prompt="what ?", images=[png(image)])
        marked, _ = await generate(stub, prompt="<image>\nwhat ?", images=[png(image)])
        with pytest.raises(grpc.aio.AioRpcError, match="no chat template") as caught:
            await chat(stub, pb.ChatMessage(role="user", content="what ?", images=[png(image)]))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert before == marked


async def test_a_sound_that_the_model_would_cut_is_refused_in_every_call(tiny: Tiny) -> None:
    long, message = sound(noise(31)), "longer than the limit of 30 s"
    async with serve(spec_of(tiny("qwen2-audio"), "vlm")) as stub:
        calls = (
            lambda: stub.Infer(pb.InferRequest(audio=long, prompt="what ?")),
            lambda: generate(stub, prompt="what ?", audio=[long]),
            lambda: chat(stub, pb.ChatMessage(role="user", content="what ?", audio=[long])),
        )
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError, match=message) as caught:
                await call()
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_sounds_together_over_the_limit_are_told_the_whole_limit(tiny: Tiny) -> None:
    spec = spec_of(tiny("qwen2-audio"), "vlm", max_audio_seconds=5)
    pieces = [sound(noise(2))] * 3
    async with serve(spec) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await chat(stub, pb.ChatMessage(role="user", content="what ?", audio=pieces))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.details() == (
        "messages[0].audio[2] brings this call's audio over the limit of 5 s"
    )


FLORENCE_TASKS = ("<CAPTION>", "<OCR>", "<OD>", "<OCR_WITH_REGION>", "<REGION_PROPOSAL>")
FLORENCE_INPUTS = ("<CAPTION_TO_PHRASE_GROUNDING>a cat", "<REFERRING_EXPRESSION_SEGMENTATION>a cat")


@pytest.mark.parametrize("task", FLORENCE_TASKS + FLORENCE_INPUTS)
async def test_florence2_answers_generate_text_as_it_does_infer(tiny: Tiny, task: str) -> None:
    image = png(picture(0))
    async with serve(spec_of(tiny("florence2"), "florence2")) as stub:
        infer = pb.InferRequest(prompt=task, image=image, options={"max_new_tokens": "30"})
        wanted = await stub.Infer(infer)
        request = pb.TextRequest(prompt=task, images=[image], max_length=30)
        answers = [answer async for answer in stub.GenerateText(request)]
    assert "".join(answer.text for answer in answers).strip() == wanted.text
    assert list(answers[-1].regions) == list(wanted.regions)
    assert [answer.done for answer in answers] == [False] * (len(answers) - 1) + [True]
    assert len(answers) > 2 or task not in ("<CAPTION>", "<OCR>"), "words stream"
    assert answers[-1].usage.generated_tokens > 1


async def test_florence2_says_what_it_wants(tiny: Tiny) -> None:
    image = png(picture(0))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"prompt": "<OCR>"}, "takes one image; the request has 0"),
        ({"prompt": "<OCR>", "images": [image] * 2}, "the request has 2"),
        ({"prompt": "what ?", "images": [image]}, "must begin with one of <OCR>"),
        ({"prompt": "<OCR> and more", "images": [image]}, "only content"),
        ({"prompt": "<REGION_TO_OCR><image>", "images": [image]}, "must not contain <image>"),
        ({"prompt": "<OCR>", "images": [pb.ImageData(data=b"x")]}, r"images\[0\].data are not"),
    ]
    async with serve(spec_of(tiny("florence2"), "florence2")) as stub:
        for fields, words in cases:
            with pytest.raises(grpc.aio.AioRpcError, match=words) as caught:
                await generate(stub, **fields)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, fields
        with pytest.raises(grpc.aio.AioRpcError, match="only content"):
            await stub.Infer(pb.InferRequest(prompt="<OCR> and more", image=image))


async def test_bad_media_have_a_clear_status(tiny: Tiny) -> None:
    image, invalid = png(picture(0)), grpc.StatusCode.INVALID_ARGUMENT
    exhausted = grpc.StatusCode.RESOURCE_EXHAUSTED
    bomb = pb.ImageData(data=png_header(40_000, 40_000))
    user = {"role": "user", "content": "what ?"}
    cases: list[tuple[dict[str, Any], grpc.StatusCode, str]] = [
        (
            {"images": [image, pb.ImageData(data=b"no picture")]},
            invalid,
            r"images\[1\].data are not",
        ),
        ({"images": [pb.ImageData()]}, invalid, r"messages\[0\].images\[0\].data is empty"),
        ({"images": [bomb]}, exhausted, "pixels than the limit of 1000000"),
        ({"images": [image] * 5}, exhausted, "the call has 5 images and sounds; the limit is 4"),
        ({"audio": [sound(noise(1))]}, invalid, "takes no audio"),
        (
            {"content": "<image> or <image> ?", "images": [image]},
            invalid,
            "2 <image> placeholders but 1 image",
        ),
        (
            {"content": "<image> ?", "images": [image] * 2},
            invalid,
            "1 <image> placeholder but 2 images",
        ),
        ({"content": "a <image>"}, invalid, r"messages\[0\].content has 1 .* 0 images"),
        (
            {"images": [big()] * 3},
            exhausted,
            r"may have 1000000 pixels together; with messages\[0\].images\[\d\] they",
        ),
        (
            {"images": [big()] * 2, "content": "x" * 9000},
            invalid,
            "limit is 2048, generated tokens included",
        ),
    ]
    spec = spec_of(tiny("llava-chat"), "vlm", max_media=4, max_image_pixels=1_000_000)
    async with serve(spec) as stub:
        for fields, code, words in cases:
            with pytest.raises(grpc.aio.AioRpcError, match=words) as caught:
                await chat(stub, pb.ChatMessage(**{**user, **fields}))
            assert caught.value.code() is code, fields
        with pytest.raises(
            grpc.aio.AioRpcError, match="prompt has 2 <image> placeholders but 1 image"
        ):
            await generate(stub, prompt="<image><image>", images=[image])
        text, _ = await chat(stub, pb.ChatMessage(**user, images=[image]))
        assert text, "it serves on"


async def test_a_template_that_takes_strings_gets_them_with_the_media_s_marks(
    tiny: Tiny, tmp_path: Path
) -> None:
    folder, image = tmp_path / "strings", png(picture(0))
    shutil.copytree(tiny("llava-chat"), folder)
    (folder / "chat_template.jinja").unlink()
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}[assistant]"
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    async with serve(spec_of(folder, "vlm")) as stub:
        message = pb.ChatMessage(role="user", content="what ?", images=[image])
        text, _ = await chat(stub, message)
        prompt = "[user] <image>\nwhat ? [assistant]"
        wanted, _ = await generate(stub, prompt=prompt, images=[image])
        marked = pb.ChatMessage(role="user", content="<image>\nwhat ?", images=[image])
        assert (await chat(stub, marked))[0] == text
    assert text == wanted


async def test_a_template_that_loops_is_ended_in_every_call(tiny: Tiny, tmp_path: Path) -> None:
    folder, image = tmp_path / "loops", png(picture(0))
    shutil.copytree(tiny("llava-chat"), folder)
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}"
    (folder / "chat_template.jinja").write_text(loop)
    async with serve(spec_of(folder, "vlm", max_prompt_bytes=10_000)) as stub:
        with pytest.raises(grpc.aio.AioRpcError, match="writes more than 10000 characters"):
            await chat(stub, pb.ChatMessage(role="user", content="what ?", images=[image]))
        with pytest.raises(grpc.aio.AioRpcError, match="writes more than 10000 characters"):
            await generate(stub, prompt="what ?", images=[image])
        with pytest.raises(grpc.aio.AioRpcError, match="writes more than 10000 characters"):
            await stub.Infer(pb.InferRequest(prompt="what ?", image=image))


async def test_janus_chats_about_a_picture(tiny: Tiny) -> None:
    image = png(picture(0))
    async with serve(spec_of(tiny("janus"), "janus")) as stub:
        infer = pb.InferRequest(prompt="what ?", image=image, options={"max_new_tokens": "8"})
        inferred = await stub.Infer(infer)
        streamed, _ = await generate(stub, prompt="what ?", images=[image])
    assert streamed.strip() == inferred.text


def big() -> pb.ImageData:
    return png(Image.new("RGB", (700, 700)))


async def test_a_model_that_reads_text_alone_says_so(tmp_path: Path, tiny: Tiny) -> None:
    image = png(picture(0))
    llama = spec_of(tiny_text.save_llama(tmp_path), "text-generation", cache_bytes=32 << 20)
    async with serve(llama) as stub:
        with pytest.raises(grpc.aio.AioRpcError, match="text-generation model takes only text"):
            await generate(stub, prompt="what ?", images=[image])
        message = pb.ChatMessage(role="user", content="what ?", audio=[sound(noise(1))])
        with pytest.raises(grpc.aio.AioRpcError, match=r"messages\[0\].audio is set") as caught:
            await chat(stub, message)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    async with serve(spec_of(tiny("t5"), "text2text-generation")) as stub:
        with pytest.raises(grpc.aio.AioRpcError, match="takes only text"):
            await generate(stub, prompt="what ?", images=[image])


async def test_a_chat_that_is_cancelled_stops_and_leaves_room(tiny: Tiny) -> None:
    spec = spec_of(tiny("llava-chat"), "vlm", max_waiting_calls=0)
    message = pb.ChatMessage(role="user", content="what ?", images=[png(picture(0))])
    long = pb.ChatRequest(messages=[message], temperature=0, max_tokens=1500)
    async with serve(spec) as stub:
        for _ in range(6):  # three times as many as run at once
            call = stub.ChatCompletion(long)
            await call.read()
            call.cancel()
            await until(lambda: not generating())
        text, _ = await chat(stub, message)
    assert text


def generating() -> bool:
    """Whether a thread of the engine is inside `generate`."""
    frames = sys._current_frames()
    return any(
        "engines/transformers" in each.filename
        for thread in threading.enumerate()
        if thread.name.startswith("generate") and thread.ident in frames
        for each in traceback.extract_stack(frames[thread.ident])
    )
