"""Tiny models of the families that read images and text; see `tiny_models`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import transformers as t

from tests.support.tiny_multimodal import MEDIA_TOKENS, TEXT, TOKENS, save_multimodal
from tests.support.tiny_parts import CLIP_VISION, SMALL, builder, clip_images, fast_tokenizer

# Families by the names of their models, with what stands for an image in a prompt.
FAMILIES = {
    "qwen2.5-vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "qwen3-vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "internvl": "<IMG_CONTEXT>",
    "paligemma": "<image>",
    "idefics2": "<image>",
    "mllama": "<|image|>",
    "pixtral": "[IMG]",
    "mistral3": "[IMG]",
    "llava-next": "<image>",
    "llava-onevision": "<image>",
    "vipllava": "<image>",
}
MEDIA_TOKENS.update(FAMILIES)

_SIGLIP = {**CLIP_VISION, "model_type": "siglip_vision_model"}
_CLIP = {**CLIP_VISION, "model_type": "clip_vision_model", "projection_dim": 32}


def _on_pillow(family: str, name: str) -> Any:
    """An image processor that the package hides where torchvision is missing."""
    return getattr(
        import_module(f"transformers.models.{family}.image_processing_pil_{family}"), name
    )


def _tokenizer(**extra: str) -> Any:
    return fast_tokenizer(TOKENS, extra=extra)


def _text(tokenizer: Any, model_type: str = "llama", **more: Any) -> dict[str, Any]:
    return {**TEXT, "model_type": model_type, "vocab_size": len(tokenizer), **more}


def _qwen(name: str, folder: Path, kind: str, text: str, **vision: Any) -> None:
    tokenizer = _tokenizer(
        image_token="<|image_pad|>",
        video_token="<|video_pad|>",
        vision_bos_token="<|vision_start|>",
        vision_eos_token="<|vision_end|>",
    )
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10_000.0}
    config = getattr(t, f"{kind}Config")(
        text_config=_text(tokenizer, text, rope_parameters=rope, head_dim=8),
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "out_hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 4,
            "patch_size": 8,
            **vision,
        },
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        vision_start_token_id=tokenizer.vision_bos_token_id,
        vision_end_token_id=tokenizer.vision_eos_token_id,
    )
    images = t.Qwen2VLImageProcessorPil(
        patch_size=8, size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
    )
    model = getattr(t, f"{kind}ForConditionalGeneration")(config)
    save_multimodal(name, folder, model, tokenizer, images)


@builder("qwen2.5-vl")
def _(folder: Path) -> None:
    _qwen(
        *("qwen2.5-vl", folder, "Qwen2_5_VL", "qwen2_5_vl_text"),
        window_size=32,
        fullatt_block_indexes=[1],
    )


@builder("qwen3-vl")
def _(folder: Path) -> None:
    _qwen(
        *("qwen3-vl", folder, "Qwen3VL", "qwen3_vl_text"),
        num_position_embeddings=16,
        deepstack_visual_indexes=[1],
    )


@builder("internvl")
def _(folder: Path) -> None:
    tokenizer = _tokenizer(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    config = t.InternVLConfig(
        text_config=_text(tokenizer, "qwen2"),
        vision_config={**SMALL, "image_size": [32, 32], "patch_size": [8, 8]},
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=4,
    )
    images = _on_pillow("got_ocr2", "GotOcr2ImageProcessorPil")(
        size={"height": 32, "width": 32}, crop_to_patches=True, max_patches=3
    )
    model = t.InternVLForConditionalGeneration(config)
    save_multimodal(
        *("internvl", folder, model, tokenizer, images),
        processor_class="InternVLProcessor",
        image_seq_length=4,
    )


@builder("paligemma")
def _(folder: Path) -> None:
    tokenizer = _tokenizer(image_token="<image>")
    config = t.PaliGemmaConfig(
        text_config=_text(tokenizer, "gemma", head_dim=8),
        vision_config=_SIGLIP,
        image_token_index=tokenizer.image_token_id,
        projection_dim=32,
    )
    images = t.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    images.image_seq_length = 16
    processor = t.PaliGemmaProcessor(image_processor=images, tokenizer=tokenizer)
    save_multimodal("paligemma", folder, t.PaliGemmaForConditionalGeneration(config), processor)


@builder("idefics2")
def _(folder: Path) -> None:
    tokenizer = _tokenizer(image_token="<image>", image_boundary_token="<fake_token_around_image>")
    tokenizer.add_tokens(["<end_of_utterance>"], special_tokens=True)
    config = t.Idefics2Config(
        text_config=_text(tokenizer, "mistral"),
        vision_config={**CLIP_VISION, "model_type": "idefics2_vision"},
        perceiver_config={
            "resampler_n_latents": 4,
            "resampler_depth": 1,
            "resampler_n_heads": 4,
            "resampler_head_dim": 8,
            "num_key_value_heads": 4,
            "hidden_size": 32,
        },
        image_token_id=tokenizer.image_token_id,
    )
    images = _on_pillow("idefics2", "Idefics2ImageProcessorPil")(
        size={"shortest_edge": 16, "longest_edge": 32}, do_image_splitting=False
    )
    model = t.Idefics2ForConditionalGeneration(config)
    save_multimodal(
        *("idefics2", folder, model, tokenizer, images),
        processor_class="Idefics2Processor",
        image_seq_len=4,
    )


@builder("mllama")
def _(folder: Path) -> None:
    # Its embeddings have eight tokens more than its vocabulary, of which the first is the image.
    tokenizer = _tokenizer()
    vocabulary = len(tokenizer)
    tokenizer.add_tokens(["<|image|>"], special_tokens=True)
    config = t.MllamaConfig(
        text_config={
            **TEXT,
            "vocab_size": vocabulary,
            "cross_attention_layers": [1],
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        },
        vision_config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 4,
            "intermediate_size": 64,
            "image_size": 32,
            "patch_size": 8,
            "max_num_tiles": 4,
            "supported_aspect_ratios": [
                *([1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]),
            ],
            "intermediate_layers_indices": [0, 1],
            "vision_output_dim": 96,
        },
        image_token_index=vocabulary,
    )
    images = _on_pillow("mllama", "MllamaImageProcessorPil")(
        size={"height": 32, "width": 32}, max_image_tiles=4
    )
    processor = t.MllamaProcessor(image_processor=images, tokenizer=tokenizer)
    save_multimodal("mllama", folder, t.MllamaForConditionalGeneration(config), processor)


def _pixtral(
    name: str, folder: Path, make: Callable[[Any, dict[str, Any]], Any], side: int
) -> None:
    tokenizer = _tokenizer(
        image_token="[IMG]", image_break_token="[IMG_BREAK]", image_end_token="[IMG_END]"
    )
    vision = {**CLIP_VISION, "model_type": "pixtral", "head_dim": 8, "image_size": 64}
    images = _on_pillow("pixtral", "PixtralImageProcessorPil")(
        size={"longest_edge": 64}, patch_size={"height": side, "width": side}
    )
    save_multimodal(
        *(name, folder, make(tokenizer, vision), tokenizer, images),
        processor_class="PixtralProcessor",
        patch_size=8,
        spatial_merge_size=side // 8,
        image_token="[IMG]",
        image_break_token="[IMG_BREAK]",
        image_end_token="[IMG_END]",
    )


@builder("pixtral")
def _(folder: Path) -> None:
    def make(tokenizer: Any, vision: dict[str, Any]) -> Any:
        config = t.LlavaConfig(
            text_config=_text(tokenizer, "mistral", head_dim=8),
            vision_config=vision,
            image_token_index=tokenizer.image_token_id,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        )
        return t.LlavaForConditionalGeneration(config)

    _pixtral("pixtral", folder, make, 8)


@builder("mistral3")
def _(folder: Path) -> None:
    def make(tokenizer: Any, vision: dict[str, Any]) -> Any:
        config = t.Mistral3Config(
            text_config=_text(tokenizer, "mistral", head_dim=8),
            vision_config=vision,
            image_token_index=tokenizer.image_token_id,
            spatial_merge_size=2,
        )
        return t.Mistral3ForConditionalGeneration(config)

    _pixtral("mistral3", folder, make, 16)


@builder("llava-next")
def _(folder: Path) -> None:
    tokenizer = _tokenizer(image_token="<image>")
    config = t.LlavaNextConfig(
        text_config=_text(tokenizer),
        vision_config=_CLIP,
        image_token_index=tokenizer.image_token_id,
        image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]],
        vision_feature_layer=-1,
    )
    images = t.LlavaNextImageProcessorPil(
        size={"shortest_edge": 32},
        crop_size={"height": 32, "width": 32},
        image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]],
    )
    processor = t.LlavaNextProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    save_multimodal("llava-next", folder, t.LlavaNextForConditionalGeneration(config), processor)


@builder("llava-onevision")
def _(folder: Path) -> None:
    tokenizer = _tokenizer(image_token="<image>", video_token="<video>")
    config = t.LlavaOnevisionConfig(
        text_config=_text(tokenizer, "qwen2"),
        vision_config=_SIGLIP | {"vision_use_head": False},
        image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.video_token_id,
        image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]],
        vision_feature_layer=-1,
    )
    images = _on_pillow("llava_onevision", "LlavaOnevisionImageProcessorPil")(
        size={"height": 32, "width": 32}, image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]]
    )
    model = t.LlavaOnevisionForConditionalGeneration(config)
    save_multimodal(
        *("llava-onevision", folder, model, tokenizer, images),
        processor_class="LlavaOnevisionProcessor",
        num_image_tokens=16,
        vision_feature_select_strategy="full",
    )


@builder("vipllava")
def _(folder: Path) -> None:
    tokenizer = _tokenizer(image_token="<image>")
    config = t.VipLlavaConfig(
        text_config=_text(tokenizer),
        vision_config=_CLIP,
        image_token_index=tokenizer.image_token_id,
        vision_feature_layers=[-2, -1],
    )
    processor = t.LlavaProcessor(
        image_processor=clip_images(32, size={"shortest_edge": 32}),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    save_multimodal("vipllava", folder, t.VipLlavaForConditionalGeneration(config), processor)
