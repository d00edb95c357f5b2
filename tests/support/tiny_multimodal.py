"""Tiny language models that take images or sounds, with chat templates; see `tiny_models`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers as t
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from tests.support.text_pipeline import spec_of
from tests.support.tiny_parts import (
    CLIP_VISION,
    SMALL,
    builder,
    clip_images,
    fast_tokenizer,
    save,
    widen,
)
from text_svc.torch_models.pretrained import Pretrained
from text_svc.worker.media.processors import read_processor

# What stands for an image or a sound in a prompt of each model.
MEDIA_TOKENS = {
    "llava-chat": "<image>",
    "smolvlm": "<image>",
    "idefics3": "<image>",
    "qwen2-vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "gemma3": "<start_of_image>",
    "qwen2-audio": "<|audio_bos|><|AUDIO|><|audio_eos|>",
}
# Tokens of the answers that are compared.
NEW = 8
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
TEXT = {**SMALL, "num_key_value_heads": 4, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


def _template(media_token: str) -> str:
    """Like those of real models: contents are lists of parts, and the first token is written."""
    return (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {% for part in m.content %}"
        f"{{% if part.type == 'text' %}}{{{{ part.text }}}}{{% else %}}{media_token}{{% endif %}}"
        "{% endfor %}{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
    )


def save_multimodal(name: str, folder: Path, model: Any, *parts: Any, **processor: Any) -> None:
    widen(model)
    model.generation_config = t.GenerationConfig(bos_token_id=0, eos_token_id=1, pad_token_id=2)
    save(folder, model, model.generation_config, *parts)
    (folder / "chat_template.jinja").write_text(_template(MEDIA_TOKENS[name]))
    if processor:
        (folder / "processor_config.json").write_text(json.dumps(processor))


@builder("llava")
def _(folder: Path) -> None:
    """Without a chat template, as early models."""
    _llava(folder)
    (folder / "chat_template.jinja").unlink()


@builder("llava-chat")
def _llava(folder: Path) -> None:
    tokenizer = fast_tokenizer(TOKENS, around=None, extra={"image_token": "<image>"})
    config = t.LlavaConfig(
        text_config={**TEXT, "model_type": "llama", "vocab_size": len(tokenizer)},
        vision_config={**CLIP_VISION, "model_type": "clip_vision_model", "projection_dim": 32},
        image_token_index=tokenizer.image_token_id,
        vision_feature_layer=-1,
    )
    processor = t.LlavaProcessor(
        image_processor=clip_images(32, size={"shortest_edge": 32}),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    save_multimodal("llava-chat", folder, t.LlavaForConditionalGeneration(config), processor)


def _smol(name: str, folder: Path, kind: str, images: Any) -> None:
    """The first SmolVLM models are Idefics3 models, the later ones have a class of their own."""
    extra = {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
    }
    tokenizer = fast_tokenizer(TOKENS, extra=extra)
    tokenizer.add_tokens([f"<row_{r}_col_{c}>" for r in range(1, 4) for c in range(1, 4)])
    config = getattr(t, f"{kind}Config")(
        text_config={**TEXT, "model_type": "llama", "vocab_size": len(tokenizer)},
        vision_config=CLIP_VISION,
        scale_factor=2,
        image_token_id=tokenizer.image_token_id,
        pad_token_id=2,
    )
    processor = images(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    settings = {"processor_class": f"{kind}Processor", "image_seq_len": 4}
    model = getattr(t, f"{kind}ForConditionalGeneration")(config)
    save_multimodal(name, folder, model, tokenizer, processor, **settings)


@builder("smolvlm")
def _(folder: Path) -> None:
    _smol("smolvlm", folder, "SmolVLM", SmolVLMImageProcessorPil)


@builder("idefics3")
def _(folder: Path) -> None:
    _smol("idefics3", folder, "Idefics3", Idefics3ImageProcessorPil)


@builder("qwen2-vl")
def _(folder: Path) -> None:
    extra = {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "vision_bos_token": "<|vision_start|>",
        "vision_eos_token": "<|vision_end|>",
    }
    tokenizer = fast_tokenizer(TOKENS, extra=extra)
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10_000.0}
    config = t.Qwen2VLConfig(
        text_config={**TEXT, "vocab_size": len(tokenizer), "rope_parameters": rope},
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 32,
            "num_heads": 4,
            "patch_size": 8,
            "mlp_ratio": 2,
        },
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        vision_start_token_id=tokenizer.vision_bos_token_id,
        vision_end_token_id=tokenizer.vision_eos_token_id,
    )
    size = {"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
    images = t.Qwen2VLImageProcessorPil(patch_size=8, size=size)
    save_multimodal(
        "qwen2-vl", folder, t.Qwen2VLForConditionalGeneration(config), tokenizer, images
    )


@builder("gemma3")
def _(folder: Path) -> None:
    extra = {
        "image_token": "<image_soft_token>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
    }
    tokenizer = fast_tokenizer(TOKENS, extra=extra)
    config = t.Gemma3Config(
        text_config={**TEXT, "vocab_size": len(tokenizer), "head_dim": 8, "sliding_window": 64},
        vision_config=CLIP_VISION,
        mm_tokens_per_image=4,
        image_token_index=tokenizer.image_token_id,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
    )
    processor = t.Gemma3Processor(
        image_processor=t.Gemma3ImageProcessorPil(size={"height": 32, "width": 32}),
        tokenizer=tokenizer,
        image_seq_length=4,
    )
    save_multimodal("gemma3", folder, t.Gemma3ForConditionalGeneration(config), processor)


@builder("qwen2-audio")
def _(folder: Path) -> None:
    extra = {
        "audio_token": "<|AUDIO|>",
        "audio_bos_token": "<|audio_bos|>",
        "audio_eos_token": "<|audio_eos|>",
    }
    tokenizer = fast_tokenizer(TOKENS, extra=extra)
    config = t.Qwen2AudioConfig(
        audio_config={
            "d_model": 32,
            "encoder_layers": 2,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            "num_mel_bins": 16,
        },
        text_config={**TEXT, "model_type": "qwen2", "vocab_size": len(tokenizer)},
        audio_token_index=tokenizer.audio_token_id,
    )
    extractor = t.WhisperFeatureExtractor(feature_size=16)
    model = t.Qwen2AudioForConditionalGeneration(config)
    save_multimodal("qwen2-audio", folder, model, t.Qwen2AudioProcessor(extractor, tokenizer))


def part(kind: str, text: str = "") -> dict[str, str]:
    """A part of a message, as chat templates take them."""
    return {"type": kind, "text": text} if text else {"type": kind}


def reference(
    folder: Path, *turns: tuple[str, list[dict[str, str]]], **media: Any
) -> tuple[str, int]:
    """Greedy tokens of transformers called directly, as text, and the length of the prompt."""
    spec = spec_of(folder, "vlm")
    processor = read_processor(Pretrained(spec.folder, spec.options))
    model = t.AutoModelForMultimodalLM.from_pretrained(folder).eval()
    conversation = [{"role": role, "content": parts} for role, parts in turns]
    # SmolVLM's own looks at videos first, which want torchvision.
    apply = t.ProcessorMixin.apply_chat_template
    prompt = apply(processor, conversation, add_generation_prompt=True)
    inputs = processor(text=prompt, **media, return_tensors="pt", add_special_tokens=False)
    size = inputs["input_ids"].shape[1]
    ids = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)[0, size:]
    return processor.decode(ids, skip_special_tokens=True), size
