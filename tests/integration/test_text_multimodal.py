"""Sounds and images through Envoy: Infer, TranscribeStream, and a chat about a picture."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image

from ml import model_management_pb2 as mm
from ml import model_management_pb2_grpc as mm_grpc
from ml import transformers_pb2 as pb
from ml import transformers_pb2_grpc as pb_grpc
from shared.model_ids import folder_name, parse_model_id
from tests.support import tiny_models
from tests.support.folders import MakeFolder
from tests.support.http_calls import post
from tests.support.pictures import picture, png
from tests.support.speech import speak, wav
from tests.support.stack import CHAT, TEXT, Stack, stack_in
from tests.support.tiny_multimodal import NEW, part, reference
from tests.support.video_files import pictures, video

WHISPER = "openai/whisper-tiny.en"
LLAVA = "tiny/llava"
SAM, DETR = "tiny/sam", "tiny/detr"
FLORENCE = "tiny/florence-2"
ANSWERS, CLIPS, PAGES = "tiny/answers", "tiny/clips", "tiny/pages"
SENTENCES = "The dog is in the house. She is on the sea shore."


def load(
    channel: grpc.Channel, model_id: str, pipeline_type: str = "", hint: str = ""
) -> mm.LoadModelResponse:
    return mm_grpc.ModelManagementServiceStub(channel).LoadModel(
        mm.LoadModelRequest(model_id=model_id, pipeline_type=pipeline_type, architecture=hint)
    )


def unload(channel: grpc.Channel, model_id: str) -> None:
    mm_grpc.ModelManagementServiceStub(channel).UnloadModel(
        mm.UnloadModelRequest(model_id=model_id)
    )


def understood(text: str) -> bool:
    """Whether most words are right: the voice is a machine's."""
    heard, said = (set(each.lower().replace(".", "").split()) for each in (text, SENTENCES))
    return len(heard & said) >= 0.7 * len(said)


def test_speech_is_written_at_once_and_while_it_comes(stack: Stack) -> None:
    spoken, rate = speak(SENTENCES)
    pause = np.zeros(rate * 2, np.int16)
    samples = np.concatenate([spoken, pause, spoken]).astype("<i2")

    def requests() -> Iterator[pb.TranscribeRequest]:
        yield pb.TranscribeRequest(model=WHISPER)
        for at in range(0, len(samples), rate // 2):
            data = samples[at : at + rate // 2].tobytes()
            audio = pb.AudioData(data=data, format="pcm_s16le", rate=rate)
            yield pb.TranscribeRequest(audio=audio)

    with stack.channel() as channel:
        load(channel, WHISPER)
        stub = pb_grpc.TransformersServiceStub(channel)
        whole = stub.Infer(pb.InferRequest(model=WHISPER, audio={"data": wav(spoken, rate)}))
        segments = [one for each in stub.TranscribeStream(requests()) for one in each.segments]
        unload(channel, WHISPER)
    assert understood(whole.text), whole.text
    second = len(spoken) / rate + 1
    for begin, end in ((0, second), (second, np.inf)):
        said = " ".join(one.text for one in segments if begin <= one.start < end)
        assert understood(said), segments


def test_a_language_model_refuses_pictures(stack: Stack) -> None:
    message = pb.ChatMessage(role="user", content="what is it?", images=[png(picture(0))])
    with stack.channel() as channel:
        load(channel, CHAT)
        stub = pb_grpc.TransformersServiceStub(channel)
        with pytest.raises(grpc.RpcError, match="takes only text") as caught:
            list(stub.ChatCompletion(pb.ChatRequest(model=CHAT, messages=[message])))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture(scope="module")
def small(models: Path, module_folder: MakeFolder) -> Iterator[Stack]:
    """A stack whose text models are tiny and see."""
    folder = module_folder("small")
    for name, model_id in (
        ("llava-chat", LLAVA),
        ("sam", SAM),
        ("detr", DETR),
        ("florence2", FLORENCE),
        ("bert-qa", ANSWERS),
        ("videomae", CLIPS),
        ("layoutlmv3", PAGES),
    ):
        tiny_models.build(name, folder / "models" / "text" / model_id)
    (folder / "models" / "vision").symlink_to(models / "vision")
    with stack_in(folder / "run", "--models", str(folder / "models")) as running:
        running.wait_serving()
        with running.channel() as channel:
            load(channel, LLAVA)  # its architecture tells what it is
        yield running


def test_a_chat_about_a_picture_is_that_of_transformers(small: Stack, tmp_path: Path) -> None:
    image = picture(0)
    wanted, prompt_tokens = reference(
        tiny_models.build("llava-chat", tmp_path / "llava"),
        ("user", [part("image"), part("text", "what ?")]),
        images=[image],
    )
    message = pb.ChatMessage(role="user", content="what ?", images=[png(image)])
    request = pb.ChatRequest(model=LLAVA, messages=[message], temperature=0, max_tokens=NEW)
    with small.channel() as channel:
        stub = pb_grpc.TransformersServiceStub(channel)
        answers = list(stub.ChatCompletion(request))
        asked = pb.InferRequest(model=LLAVA, prompt="what ?", image=png(image))
        asked.options["max_new_tokens"] = str(NEW)
        inferred = stub.Infer(asked)
    assert "".join(answer.content for answer in answers) == wanted
    assert len(answers) > 2
    assert answers[-1].usage.prompt_tokens == prompt_tokens
    assert inferred.text == wanted.strip()


def test_its_files_are_links_into_the_store_of_the_machine(small: Stack) -> None:
    cache = small.state_file.parent / "cache"
    name = folder_name(parse_model_id(LLAVA))
    store, linked = cache / "model_mgmt" / name, cache / "text" / name
    files = [path for path in linked.rglob("*") if path.is_file()]
    assert linked / "model.safetensors" in files
    assert all(path.samefile(store / path.relative_to(linked)) for path in files)


def test_a_picture_in_json(small: Stack) -> None:
    broken = {"data": base64.b64encode(b"no picture").decode()}
    good = {"data": base64.b64encode(png(picture(0)).data).decode()}

    def ask(image: dict[str, str]) -> tuple[int, str]:
        message = {"role": "user", "content": "what ?", "images": [image]}
        body = json.dumps({"model": LLAVA, "messages": [message], "max_tokens": NEW})
        answer, text = post(small.addresses["envoy"], f"{TEXT}/ChatCompletion", body.encode())
        return answer.status, text.decode()

    status, lines = ask(good)
    assert status == 200
    assert json.loads(lines.splitlines()[-1])["done"] is True
    _, text = ask(broken)
    assert "messages[0].images[0].data" in text


def test_objects_and_masks(small: Stack) -> None:
    """Their architectures tell what they are."""
    image = png(picture(0))
    point, box = pb.PromptPoint(x=0.5, y=0.5), [0.1, 0.2, 0.7, 0.9]
    prompts = [pb.RegionPrompt(points=[point]), pb.RegionPrompt(box=box)]
    with small.channel() as channel:
        stub = pb_grpc.TransformersServiceStub(channel)
        load(channel, DETR)
        asked = pb.InferRequest(model=DETR, image=image, options={"threshold": "0.1", "top_k": "3"})
        objects = stub.Infer(asked).regions
        unload(channel, DETR)
        load(channel, SAM)
        masks = stub.Infer(pb.InferRequest(model=SAM, image=image, region_prompts=prompts)).regions
        with pytest.raises(grpc.RpcError, match="region_prompts is empty") as caught:
            stub.Infer(pb.InferRequest(model=SAM, image=image))
        unload(channel, SAM)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert len(objects) == 3
    assert all(each.label in ("cat", "dog", "sofa") and len(each.points) == 4 for each in objects)
    assert [each.prompt for each in masks] == [0, 0, 0, 1, 1, 1]
    assert {(each.mask.width, each.mask.height) for each in masks} == {(70, 60)}
    assert all(Image.open(io.BytesIO(each.mask.png)).size == (70, 60) for each in masks)


def test_questions_and_clips(small: Stack) -> None:
    """In processes that are restricted; their architectures tell what they are."""
    text, image = "👩‍👩‍👧 a cat and a dog", png(picture(0))
    words = [pb.DocumentWord(text=word, box=[0.1, 0.1, 0.5, 0.2]) for word in text.split()]
    requests = {
        ANSWERS: {"text": text, "prompt": "who ?"},
        PAGES: {"document": pb.Document(words=words, image=image), "prompt": "who ?"},
        CLIPS: {"video": pb.VideoData(data=video(pictures(9)))},
    }
    found = {}
    with small.channel() as channel:
        stub = pb_grpc.TransformersServiceStub(channel)
        for model, request in requests.items():
            load(channel, model)
            found[model] = stub.Infer(pb.InferRequest(model=model, **request))
        with pytest.raises(grpc.RpcError, match="is not a MP4") as caught:
            stub.Infer(pb.InferRequest(model=CLIPS, video=pb.VideoData(data=b"no video" * 99)))
        for model in requests:
            unload(channel, model)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    (answer,) = found[ANSWERS].answers
    assert answer.text == text[answer.start : answer.end] != ""
    (answer,) = found[PAGES].answers
    assert answer.text == " ".join(text.split()[answer.start : answer.end]) != ""
    assert sum(label.score for label in found[CLIPS].labels) == pytest.approx(1, abs=1e-4)


def test_types_and_hints_as_the_application_sends_them(small: Stack) -> None:
    """A LLaVA as text-generation chats with and without a picture, and generates text."""
    image = png(picture(0))
    with small.channel() as channel:
        stub = pb_grpc.TransformersServiceStub(channel)
        florence = load(channel, FLORENCE, "image-to-text", "florence2")
        asked = pb.InferRequest(model=FLORENCE, image=image, prompt="<CAPTION>")
        asked.options["max_new_tokens"] = "3"
        caption = stub.Infer(asked)
        unload(channel, FLORENCE)
        unload(channel, LLAVA)
        llava = load(channel, LLAVA, "text-generation", "llava")
        chats = [
            list(
                stub.ChatCompletion(
                    pb.ChatRequest(
                        model=LLAVA,
                        messages=[pb.ChatMessage(role="user", content="what ?", images=images)],
                        max_tokens=NEW,
                    )
                )
            )
            for images in ([], [image])
        ]
        prompt = pb.TextRequest(model=LLAVA, prompt="what ?", max_length=NEW, top_p=0.9)
        texts = list(stub.GenerateText(prompt))
        with pytest.raises(grpc.RpcError, match="DetrForObjectDetection") as caught:
            load(channel, DETR, "text-generation", "llava")
    assert florence.pipeline_type == "florence2"
    assert "hint 'florence2'" in florence.message
    assert caption.text
    assert llava.pipeline_type == "visual-language"
    assert "hint 'llava'" in llava.message
    plain, with_picture = (chat[-1].usage.prompt_tokens for chat in chats)
    assert plain < with_picture
    assert all(chat[-1].done for chat in chats)
    assert texts[-1].done
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
