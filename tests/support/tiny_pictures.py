"""Tiny models of images: CLIP, ViT, Florence-2, BLIP, Janus."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers as t

from tests.support.tiny_parts import (
    CLIP_VISION,
    SMALL,
    SMALL_SEQ2SEQ,
    bert_tokenizer,
    builder,
    clip_images,
    fast_tokenizer,
    save,
    widen,
)


@builder("clip")
def _(folder: Path) -> None:
    end = "<|endoftext|>"
    tokens = {"bos_token": "<|startoftext|>", "eos_token": end, "pad_token": end, "unk_token": end}
    tokenizer = fast_tokenizer(tokens, around=("<|startoftext|>", end))
    tokenizer.model_max_length = 77
    config = t.CLIPConfig(
        text_config={
            **SMALL,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 77,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 1,
        },
        vision_config=CLIP_VISION,
        projection_dim=16,
    )
    processor = t.CLIPProcessor(
        image_processor=clip_images(32, size={"shortest_edge": 32}), tokenizer=tokenizer
    )
    save(folder, t.CLIPModel(config), processor)


@builder("vit")
def _(folder: Path) -> None:
    config = t.ViTConfig(**CLIP_VISION, num_labels=3)
    images = t.ViTImageProcessorPil(size={"height": 32, "width": 32})
    save(folder, t.ViTForImageClassification(config), images)


@builder("florence2")
def _(folder: Path) -> None:
    tokens = {
        "bos_token": "<s>",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
        "cls_token": "<s>",
        "sep_token": "</s>",
    }
    tokenizer = fast_tokenizer(tokens, extra={"image_token": "<image>"})
    tokenizer.add_tokens([f"<loc_{place}>" for place in range(1000)])
    text = t.BartConfig(
        vocab_size=len(tokenizer),
        **SMALL_SEQ2SEQ,
        max_position_embeddings=256,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_eos_token_id=2,
    )
    vision = {
        "embed_dim": [8, 16, 24, 32],
        "num_heads": [1, 2, 3, 4],
        "num_groups": [1, 2, 3, 4],
        "depths": [1, 1, 1, 1],
        "window_size": 4,
        "projection_dim": 32,
    }
    config = t.Florence2Config(
        text_config=text.to_dict(),
        vision_config=vision,
        image_token_id=tokenizer.image_token_id,
    )
    images = clip_images(64, size={"height": 64, "width": 64}, do_center_crop=False)
    images.image_seq_length = 5
    kinds = (
        *("pure_text", "ocr", "phrase_grounding", "description_with_bboxes", "bboxes"),
        *("polygons", "description_with_polygons", "description_with_bboxes_or_polygons"),
    )
    processor = t.Florence2Processor(
        image_processor=images, tokenizer=tokenizer, post_processor_config={k: {} for k in kinds}
    )
    model = t.Florence2ForConditionalGeneration(config)
    widen(model)
    save(folder, model, processor)


def blip_config(tokenizer: Any) -> t.BlipConfig:
    """Of a BLIP that writes in the tokens of `bert_tokenizer`."""
    return t.BlipConfig(
        text_config={
            **SMALL,
            "vocab_size": len(tokenizer),
            "encoder_hidden_size": 32,
            "bos_token_id": 2,
            "eos_token_id": 3,
            "sep_token_id": 3,
            "pad_token_id": 0,
        },
        vision_config=CLIP_VISION,
        projection_dim=16,
    )


@builder("blip")
def _(folder: Path) -> None:
    tokenizer = bert_tokenizer()
    config = blip_config(tokenizer)
    images = t.BlipImageProcessorPil(size={"height": 32, "width": 32})
    processor = t.BlipProcessor(image_processor=images, tokenizer=tokenizer)
    save(folder, t.BlipForConditionalGeneration(config), processor)


@builder("janus")
def _(folder: Path) -> None:
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    extra = {
        "image_token": "<image_placeholder>",
        "boi_token": "<begin_of_image>",
        "eoi_token": "<end_of_image>",
    }
    tokenizer = fast_tokenizer(tokens, extra=extra)
    config = t.JanusConfig(
        text_config={
            **SMALL,
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "num_key_value_heads": 4,
            "pad_token_id": 2,
        },
        vision_config={
            # The processor always makes 576 tokens of an image.
            **SMALL,
            "model_type": "janus_vision_model",
            "projection_dim": 32,
            "image_size": 48,
            "patch_size": 2,
            "num_image_tokens": 576,
        },
        vq_config={
            "embed_dim": 8,
            "num_embeddings": 64,
            "base_channels": 32,
            "latent_channels": 8,
            "channel_multiplier": [1, 2],
            "num_res_blocks": 1,
            "num_patches": 24,
            "projection_dim": 32,
            "image_token_embed_dim": 32,
        },
        image_token_id=tokenizer.image_token_id,
    )
    images = t.JanusImageProcessorPil(size={"height": 48, "width": 48})
    processor = t.JanusProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        chat_template=None,
        use_default_system_prompt=False,
    )
    model = t.JanusForConditionalGeneration(config)
    model.generation_config = t.GenerationConfig(
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        guidance_scale=5,
        generation_kwargs={"boi_token_id": tokenizer.boi_token_id},
    )
    save(folder, model, processor)
