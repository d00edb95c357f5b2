"""Loads the model of a case as the text service does, calls it, and holds transformers against it.

The reference reads the same folder with the class of `transformers` and nothing of ours, one text
at a time, without padding.
"""

from __future__ import annotations

import asyncio
import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import torch
import transformers as t
from PIL import Image
from transformers.models.auto import modeling_auto as auto

from ml import transformers_pb2 as pb
from shared import pipelines
from shared.errors import ServiceError
from tests.architectures import media
from tests.architectures.builders import NotBuiltError, build
from tests.architectures.mappings import Case
from tests.architectures.parts import SPECIAL, text
from tests.support.text_pipeline import serve, spec_of
from text_svc.convert.__main__ import convert
from text_svc.convert.spec import ConversionSpec
from text_svc.formats.manifest import Manifest
from text_svc.inspection.__main__ import inspect
from text_svc.inspection.spec import InspectionSpec
from text_svc.options import LoadOptions
from text_svc.settings import TextSettings
from text_svc.torch_models.pretrained import Pretrained
from text_svc.worker.media.processors import read_processor
from text_svc.worker.pipelines.speech_recognition import MAX_MOONSHINE_TOKENS_PER_SECOND

EQUAL = "equal"
# What a row says first where it is not equal.
REFUSED, DIFFERENT, NOT_TRIED, NOT_CONVERTED = "refused", "DIFFERENT", "not tried", "not converted"
FAILS_THERE = "fails in transformers"
BROKEN = "BROKEN"

# One of them is longer than every window, and one longer than what is read of a prompt at once.
LENGTHS = (5, 11, 40, 300)
NEW_TOKENS = 12
# Where the reference's best two logits are closer than this part of their range, either is right.
TIE = 1e-3
TOLERANCE = 2e-4


class DifferentError(Exception):
    """The answer is not that of transformers; the message says how."""


class NoReferenceError(Exception):
    """transformers itself cannot answer."""


def run(case: Case, scratch: Path) -> str:
    """The result of a case, as it stands in the table."""
    folder = scratch / "model-files"
    try:
        build(case, folder)
    except NotBuiltError as error:
        return f"{NOT_TRIED}: {error}"
    try:
        _inspect(folder, scratch)
        converted = None
        if case.engine == "openvino":
            converted = scratch / "converted" / "result"
            refused = _convert(case, folder, converted, scratch)
            if refused:
                return f"{NOT_CONVERTED}: {refused}"
        spec = spec_of(
            folder,
            case.pipeline,
            engine=case.engine,
            converted=converted,
            cache_bytes=64 << 20,
            threads=1,
        )
        answers = asyncio.run(_answers(case, spec))
    except ServiceError as error:
        return f"{REFUSED}: {_clean(error.message, folder)}"
    except grpc.RpcError as error:
        said = f"{error.code().name} {error.details()}"  # type: ignore[attr-defined]
        internal = error.code() is grpc.StatusCode.INTERNAL  # type: ignore[attr-defined]
        if internal:
            why = _reference_fails(case, folder)
            return f"{FAILS_THERE}: {why}" if why else f"{BROKEN}: {_clean(said, folder)}"
        return f"{REFUSED}: at the call, {_clean(said, folder)}"
    try:
        with torch.inference_mode():
            _COMPARE[case.pipeline](case, folder, answers)
    except DifferentError as error:
        return f"{DIFFERENT}: {error}"
    except Exception as error:  # noqa: BLE001  # architectures fail in ways of their own
        return f"{FAILS_THERE}, answers here: {type(error).__name__}: {_clean(str(error), folder)}"
    return EQUAL


def _clean(message: str, folder: Path) -> str:
    first = " ".join(message.split())
    return first.replace(str(folder), "").replace(f"model {folder.name} cannot be loaded: ", "")[
        :200
    ]


def _reference_fails(case: Case, folder: Path) -> str:
    try:
        with torch.inference_mode():
            _COMPARE[case.pipeline](case, folder, None)
    except DifferentError:
        return ""
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {_clean(str(error), folder)}"
    return ""


def _inspect(folder: Path, scratch: Path) -> None:
    settings = TextSettings()
    inspect(
        InspectionSpec(
            model_id=folder.name,
            scratch=scratch,
            folder=folder,
            float_bytes=4,
            max_model_json_bytes=settings.max_model_json_bytes,
            max_vocabulary_bytes=settings.max_vocabulary_bytes,
            log_level="ERROR",
            log_style="text",
        )
    )


def _convert(case: Case, folder: Path, target: Path, scratch: Path) -> str:
    convert(
        ConversionSpec(
            model_id=folder.name,
            scratch=scratch / "conversion",
            pipeline=case.pipeline,
            source=folder,
            target=target,
            weights="float",
            log_level="ERROR",
            log_style="text",
        )
    )
    manifest = Manifest.read(target)
    assert manifest
    return _clean(manifest.refused, folder) if manifest.refused else ""


async def _answers(case: Case, spec: Any) -> Any:
    async with serve(spec) as stub:
        return await _CALL[case.pipeline](stub)


# The calls.


async def _generate(stub: Any) -> list[str]:
    async def one(prompt: str) -> str:
        request = pb.TextRequest(
            prompt=prompt, max_length=NEW_TOKENS, temperature=0, repetition_penalty=1
        )
        return "".join([each.text async for each in stub.GenerateText(request)])

    return list(await asyncio.gather(*(one(prompt) for prompt in _prompts())))


async def _embed(stub: Any) -> list[list[float]]:
    answer = await stub.GenerateEmbeddings(pb.GenerateEmbeddingsRequest(texts=_prompts()))
    return [list(each.values) for each in answer.embeddings]


async def _seq2seq(stub: Any) -> list[str]:
    options = {"max_new_tokens": str(NEW_TOKENS)}
    answers = [
        (await stub.Infer(pb.InferRequest(text=prompt, options=options))).text
        for prompt in _prompts()
    ]
    return answers + await _generate(stub)


async def _classify(stub: Any) -> list[dict[str, float]]:
    requests = [pb.InferRequest(text=prompt) for prompt in _prompts()]
    requests.append(pb.InferRequest(text_pair=pb.TextPair(first=text(9, 1), second=text(20, 2))))
    answers = [await stub.Infer(request) for request in requests]
    return [{each.label: each.score for each in answer.labels} for answer in answers]


async def _rank(stub: Any) -> dict[int, float]:
    ranking = pb.Ranking(query=text(7, 9), documents=_prompts())
    answer = await stub.Infer(pb.InferRequest(ranking=ranking, options={"raw": "true"}))
    return {each.index: each.score for each in answer.documents}


async def _name(stub: Any) -> list[list[tuple[str, float, int, int]]]:
    answers = [
        await stub.Infer(pb.InferRequest(text=prompt, options={"aggregation": "none"}))
        for prompt in _prompts()
    ]
    return [
        [(span.label, span.score, span.start, span.end) for span in answer.spans]
        for answer in answers
    ]


async def _classify_image(stub: Any) -> dict[str, float]:
    answer = await stub.Infer(pb.InferRequest(image=pb.ImageData(data=media.png())))
    return {each.label: each.score for each in answer.labels}


async def _match(stub: Any) -> list[list[float]]:
    image = pb.ImageData(data=media.png())
    template = {"hypothesis_template": "{}"}
    requests = [pb.InferRequest(text=prompt) for prompt in _prompts()[:2]]
    requests.append(pb.InferRequest(image=image))
    vectors = [list((await stub.Infer(request)).vector.values) for request in requests]
    answer = await stub.Infer(pb.InferRequest(image=image, labels=_prompts()[:2], options=template))
    found = {each.label: each.score for each in answer.labels}
    return [*vectors, [found[label] for label in _prompts()[:2]]]


async def _hear(stub: Any) -> str:
    sound = pb.AudioData(
        data=media.sound().tobytes(), format="pcm_f32le", rate=media.RATE, channels=1
    )
    return str((await stub.Infer(pb.InferRequest(audio=sound))).text)


async def _speak(stub: Any) -> bytes:
    answer = await stub.Infer(pb.InferRequest(text=text(12, 1)))
    return bytes(answer.audio.data)


async def _see(stub: Any) -> str:
    options = {"max_new_tokens": str(NEW_TOKENS)}
    image = pb.ImageData(data=media.png())
    request = pb.InferRequest(image=image, prompt=text(9, 1), options=options)
    return str((await stub.Infer(request)).text)


async def _caption(stub: Any) -> str:
    options = {"max_new_tokens": str(NEW_TOKENS)}
    image = pb.ImageData(data=media.png())
    return str((await stub.Infer(pb.InferRequest(image=image, options=options))).text)


def _prompts() -> list[str]:
    return [text(length, length) for length in LENGTHS]


# The references.


def _loaded(kind: Any, folder: Path) -> tuple[Any, Any]:
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    return model, t.AutoTokenizer.from_pretrained(folder)


def _compare_generated(case: Case, folder: Path, answers: Sequence[str] | None) -> None:
    model, tokenizer = _loaded(t.AutoModelForCausalLM, folder)
    for prompt, answer in _zip(_prompts(), answers):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        _compare_text(model, tokenizer, ids, answer, skip=ids.shape[1])


def _compare_seq2seq(case: Case, folder: Path, answers: Sequence[str] | None) -> None:
    model, tokenizer = _loaded(t.AutoModelForSeq2SeqLM, folder)
    for prompt, answer in _zip([*_prompts(), *_prompts()], answers):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        _compare_text(model, tokenizer, ids, answer, skip=1)


def _compare_text(
    model: Any, tokenizer: Any, ids: torch.Tensor, answer: str | None, skip: int
) -> None:
    """Greedy tokens of `generate`; a special one leaves no text."""
    made = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    if answer is None:
        return
    place = 0
    tokens = made.sequences[0, skip:].tolist()
    for step, (token, logits) in enumerate(zip(tokens, made.logits, strict=False)):
        if token < len(SPECIAL):
            continue
        expected = tokenizer.decode([token])
        if answer[place : place + 1] == expected:
            place += 1
            continue
        best, second = logits[0].float().topk(2).values.tolist()
        spread = float(logits[0].float().std())
        if best - second < TIE * spread:
            return
        raise DifferentError(
            f"token {step} of {ids.shape[1]} + {NEW_TOKENS}: {answer!r} for "
            f"{tokenizer.decode(tokens, skip_special_tokens=True)!r}"
        )
    if len(answer.strip()) > place:
        raise DifferentError(f"{answer!r} is longer than transformers' answer")


def _compare_embeddings(case: Case, folder: Path, answers: Any) -> None:
    model, tokenizer = _loaded(t.AutoModel, folder)
    if model.config.model_type in _ENCODERS:
        model = model.get_encoder()
    for prompt, answer in _zip(_prompts(), answers):
        inputs = tokenizer(prompt, return_tensors="pt")
        hidden = model(**inputs).last_hidden_state[0].float()
        vector = torch.nn.functional.normalize(hidden.mean(0), dim=-1)
        if answer is None:
            continue
        got = torch.tensor(answer)
        if got.shape != vector.shape:
            raise DifferentError(f"vectors of {len(got)} for {len(vector)} numbers")
        _close(f"vector of {len(prompt)} tokens", got, vector)


# sentence-transformers takes their encoders.
_ENCODERS = ("t5", "mt5", "umt5", "t5gemma", "longt5", "switch_transformers")


def _compare_labels(case: Case, folder: Path, answers: Any) -> None:
    model, tokenizer = _loaded(t.AutoModelForSequenceClassification, folder)
    texts: list[Any] = [*((prompt,) for prompt in _prompts()), (text(9, 1), text(20, 2))]
    for one, answer in _zip(texts, answers):
        logits = model(**tokenizer(*one, return_tensors="pt")).logits[0].float()
        if answer is None:
            continue
        names = [model.config.id2label[index] for index in range(len(logits))]
        got = torch.tensor([answer[name] for name in names])
        _close("scores", got, logits.softmax(-1))


def _compare_ranking(case: Case, folder: Path, answers: Any) -> None:
    model, tokenizer = _loaded(t.AutoModelForSequenceClassification, folder)
    expected = [
        model(**tokenizer(text(7, 9), document, return_tensors="pt")).logits[0, 0].float()
        for document in _prompts()
    ]
    if answers is not None:
        got = torch.tensor([answers[index] for index in range(len(expected))])
        _close("scores", got, torch.stack(expected))


def _compare_names(case: Case, folder: Path, answers: Any) -> None:
    model, tokenizer = _loaded(t.AutoModelForTokenClassification, folder)
    for prompt, answer in _zip(_prompts(), answers):
        scores = model(**tokenizer(prompt, return_tensors="pt")).logits[0, 1:-1].float().softmax(-1)
        if answer is None:
            continue
        best = scores.max(-1)
        spans = [(start, end) for _, _, start, end in answer]
        if spans != [(place, place + 1) for place in range(len(prompt))]:
            raise DifferentError(f"{len(spans)} spans for {len(prompt)} tokens")
        _close("scores", torch.tensor([score for _, score, _, _ in answer]), best.values)


def _compare_image(case: Case, folder: Path, answers: Any) -> None:
    model = t.AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()
    images = type(media.image_processor(case.model_type)).from_pretrained(folder)
    logits = model(**images(images=media.picture(), return_tensors="pt")).logits[0].float()
    if answers is not None:
        got = torch.tensor([answers[model.config.id2label[index]] for index in range(len(logits))])
        _close("scores", got, logits.softmax(-1))


def _compare_match(case: Case, folder: Path, answers: Any) -> None:
    model = t.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    processor = t.AutoProcessor.from_pretrained(folder)
    # SigLIP was trained on texts of one length, as its authors say.
    is_siglip = case.model_type.startswith("siglip")
    padding = {"padding": "max_length" if is_siglip else True}
    images = processor(images=media.picture(), return_tensors="pt")
    expected = []
    for prompt in _prompts()[:2]:
        texts = processor(text=[prompt], return_tensors="pt", **padding)
        expected.append(_unit(model.get_text_features(**texts)))
    expected.append(_unit(model.get_image_features(**images)))
    logits = torch.cat(
        [
            model(**processor(text=[label], return_tensors="pt", **padding), **images)
            .logits_per_image[0]
            .float()
            for label in _prompts()[:2]
        ]
    )
    expected.append(logits.sigmoid() if is_siglip else logits.softmax(-1))
    for got, one in _zip(expected, answers):
        if one is not None:
            _close("vectors or scores", torch.tensor(one), got)


def _unit(features: Any) -> torch.Tensor:
    pooled = getattr(features, "pooler_output", features)
    return torch.nn.functional.normalize(pooled[0].float(), dim=-1)


def _compare_heard(case: Case, folder: Path, answers: Any) -> None:
    processor = t.AutoProcessor.from_pretrained(folder)
    inputs = processor(media.sound(), sampling_rate=media.RATE, return_tensors="pt")
    if case.model_type in auto.MODEL_FOR_CTC_MAPPING_NAMES:
        model = t.AutoModelForCTC.from_pretrained(folder, dtype=torch.float32).eval()
        ids = model(**inputs).logits[0].argmax(-1)
    else:
        model = t.AutoModelForSpeechSeq2Seq.from_pretrained(folder, dtype=torch.float32).eval()
        limit = {}
        if case.model_type.startswith(
            "moonshine"
        ):  # its authors' advice, which the service follows
            seconds = len(media.sound()) / media.RATE
            limit = {"max_new_tokens": int(seconds * MAX_MOONSHINE_TOKENS_PER_SECOND)}
        ids = model.generate(**inputs, **limit)[0]
    expected = processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
    if answers is not None and answers != expected:
        raise DifferentError(f"{answers[:40]!r} for {expected[:40]!r}")


def _compare_spoken(case: Case, folder: Path, answers: Any) -> None:
    model, tokenizer = _loaded(t.VitsModel, folder)
    torch.manual_seed(0)
    wave = model(**tokenizer(text(12, 1), return_tensors="pt")).waveform[0].float()
    if answers is not None:
        got = torch.frombuffer(bytearray(answers), dtype=torch.float32)
        if got.shape != wave.shape:
            raise DifferentError(f"{len(got)} samples for {len(wave)}")
        _close("samples", got, wave)


def _compare_caption(case: Case, folder: Path, answers: Any) -> None:
    model = t.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = t.AutoProcessor.from_pretrained(folder)
    inputs = processor(images=media.picture(), return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)[0]
    expected = processor.decode(ids, skip_special_tokens=True).strip()
    if answers is not None and answers != expected:
        raise DifferentError(f"{answers[:40]!r} for {expected[:40]!r}")


def _compare_seen(case: Case, folder: Path, answers: Any) -> None:
    """The picture comes first, as where the prompt does not say where it belongs."""
    model = t.AutoModelForMultimodalLM.from_pretrained(folder, dtype=torch.float32).eval()
    processor = read_processor(Pretrained(folder, LoadOptions()))
    more = {}
    if processor.chat_template:
        parts = [{"type": "image"}, {"type": "text", "text": text(9, 1)}]
        # SmolVLM's own looks at videos first, which want torchvision.
        prompt = t.ProcessorMixin.apply_chat_template(
            processor, [{"role": "user", "content": parts}], add_generation_prompt=True
        )
        more = {"add_special_tokens": False}  # the template has written them
    else:
        prompt = f"{processor.image_token}{text(9, 1)}"
    inputs = processor(text=[prompt], images=[media.picture()], return_tensors="pt", **more)
    size = 0 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    ids = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)[0, size:]
    expected = processor.decode(ids, skip_special_tokens=True).strip()
    if answers is not None and answers != expected:
        raise DifferentError(f"{answers[:40]!r} for {expected[:40]!r}")


def _zip(given: Sequence[Any], answers: Sequence[Any] | None) -> Any:
    return zip(
        given, itertools.repeat(None) if answers is None else answers, strict=answers is not None
    )


def _close(what: str, got: torch.Tensor, expected: torch.Tensor) -> None:
    if not bool(expected.isfinite().all()):
        raise NoReferenceError("its numbers are not finite")
    difference = float((got - expected).abs().max() / expected.abs().max().clamp(min=1e-9))
    if not difference <= TOLERANCE:
        raise DifferentError(f"{what} differ by {difference:.1e}")


async def _look(stub: Any, **options: str) -> pb.InferResponse:
    image = pb.ImageData(data=media.png())
    answer: pb.InferResponse = await stub.Infer(pb.InferRequest(image=image, options=options))
    return answer


async def _detect(stub: Any) -> pb.InferResponse:
    return await _look(stub, threshold="0")


async def _segment(stub: Any) -> pb.InferResponse:
    return await _look(stub, subtask="semantic", mask_format="rle")


async def _measure(stub: Any) -> pb.InferResponse:
    return await _look(stub, depth_format="float32")


async def _describe(stub: Any) -> pb.InferResponse:
    return await _look(stub, pooling="none")


def _looked(case: Case, folder: Path, auto_class: Any) -> tuple[Any, Any, Any]:
    """A model of images, its processor, and what it makes of the picture."""
    model = auto_class.from_pretrained(folder, dtype=torch.float32).eval()
    images = type(media.image_processor(case.model_type)).from_pretrained(folder)
    return model, images, model(**images(images=media.picture(), return_tensors="pt"))


def _compare_detected(case: Case, folder: Path, answers: Any) -> None:
    _, images, outputs = _looked(case, folder, t.AutoModelForObjectDetection)
    (found,) = images.post_process_object_detection(outputs, threshold=0, target_sizes=[(1, 1)])
    order = found["scores"].argsort(descending=True, stable=True)[:100]
    if answers is not None:
        scores = torch.tensor([each.score for each in answers.regions])
        _close("scores", scores, found["scores"][order])
        boxes = torch.tensor([list(each.points) for each in answers.regions])
        _close("boxes", boxes, found["boxes"][order].clamp(0, 1))


def _compare_segmented(case: Case, folder: Path, answers: Any) -> None:
    picture = media.picture()
    model, images, outputs = _looked(case, folder, t.AutoModelForSemanticSegmentation)
    (labels,) = images.post_process_semantic_segmentation(
        outputs, target_sizes=[(picture.height, picture.width)]
    )
    if answers is not None:
        got = np.full((picture.height, picture.width), -1)
        for region in answers.regions:
            inside = np.repeat(np.arange(len(region.mask.runs)) % 2 == 1, region.mask.runs)
            got[inside.reshape(got.shape, order="F")] = model.config.label2id[region.label]
        if (got != labels.numpy()).mean() > TIE:
            raise DifferentError("labels of pixels differ")


def _compare_measured(case: Case, folder: Path, answers: Any) -> None:
    picture = media.picture()
    _, images, outputs = _looked(case, folder, t.AutoModelForDepthEstimation)
    (found,) = images.post_process_depth_estimation(outputs, [(picture.height, picture.width)])
    if answers is not None:
        got = np.frombuffer(answers.depth.values, "<f4").copy()
        _close("depths", torch.from_numpy(got), found["predicted_depth"].flatten())


def _compare_described(case: Case, folder: Path, answers: Any) -> None:
    if case.model_type == "vit_mae":  # it hides most of a picture, unless it is told not to
        model = t.AutoModel.from_pretrained(folder, mask_ratio=0.0).eval()
        images = type(media.image_processor(case.model_type)).from_pretrained(folder)
        order = torch.arange(model.embeddings.patch_embeddings.num_patches)[None].float()
        outputs = model(**images(images=media.picture(), return_tensors="pt"), noise=order)
    else:
        _, _, outputs = _looked(case, folder, t.AutoModel)
    states = outputs.last_hidden_state[0]
    if states.dim() == 3:
        states = states.flatten(1).T
    if answers is not None:
        _close("vectors", torch.tensor([list(each.values) for each in answers.vectors]), states)


def _compare_made(case: Case, folder: Path, answers: Any) -> None:
    picture = media.picture()
    model, _, outputs = _looked(case, folder, t.AutoModelForImageToImage)
    height, width = (side * model.config.upscale for side in (picture.height, picture.width))
    made = outputs.reconstruction[0, :, :height, :width].clamp(0, 1) * 255
    if answers is not None:
        got = np.asarray(Image.open(io.BytesIO(answers.image.data))).astype(np.float32)
        if np.abs(got - made.permute(1, 2, 0).numpy()).max() > 1:
            raise DifferentError("pixels differ by more than 1 of 255")


_CALL = {
    pipelines.TEXT_GENERATION.name: _generate,
    pipelines.FEATURE_EXTRACTION.name: _embed,
    pipelines.TEXT2TEXT.name: _seq2seq,
    pipelines.TEXT_CLASSIFICATION.name: _classify,
    pipelines.RERANKING.name: _rank,
    pipelines.TOKEN_CLASSIFICATION.name: _name,
    pipelines.IMAGE_CLASSIFICATION.name: _classify_image,
    pipelines.OBJECT_DETECTION.name: _detect,
    pipelines.IMAGE_SEGMENTATION.name: _segment,
    pipelines.DEPTH_ESTIMATION.name: _measure,
    pipelines.IMAGE_FEATURE_EXTRACTION.name: _describe,
    pipelines.IMAGE_TO_IMAGE.name: _look,
    pipelines.CLIP.name: _match,
    pipelines.SPEECH_RECOGNITION.name: _hear,
    pipelines.TEXT_TO_SPEECH.name: _speak,
    pipelines.IMAGE_TO_TEXT.name: _caption,
    pipelines.VISUAL_LANGUAGE.name: _see,
}
_COMPARE = {
    pipelines.TEXT_GENERATION.name: _compare_generated,
    pipelines.FEATURE_EXTRACTION.name: _compare_embeddings,
    pipelines.TEXT2TEXT.name: _compare_seq2seq,
    pipelines.TEXT_CLASSIFICATION.name: _compare_labels,
    pipelines.RERANKING.name: _compare_ranking,
    pipelines.TOKEN_CLASSIFICATION.name: _compare_names,
    pipelines.IMAGE_CLASSIFICATION.name: _compare_image,
    pipelines.OBJECT_DETECTION.name: _compare_detected,
    pipelines.IMAGE_SEGMENTATION.name: _compare_segmented,
    pipelines.DEPTH_ESTIMATION.name: _compare_measured,
    pipelines.IMAGE_FEATURE_EXTRACTION.name: _compare_described,
    pipelines.IMAGE_TO_IMAGE.name: _compare_made,
    pipelines.CLIP.name: _compare_match,
    pipelines.SPEECH_RECOGNITION.name: _compare_heard,
    pipelines.TEXT_TO_SPEECH.name: _compare_spoken,
    pipelines.IMAGE_TO_TEXT.name: _compare_caption,
    pipelines.VISUAL_LANGUAGE.name: _compare_seen,
}
