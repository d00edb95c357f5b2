"""Tiny models that answer questions about pictures and pages, or label sounds and videos."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers as t

from tests.support.strange_models import change_json
from tests.support.tiny_parts import (
    BERT_TOKENS,
    CLIP_VISION,
    SMALL,
    bert_tokenizer,
    builder,
    bytes_tokenizer,
    fast_tokenizer,
    save,
    widen,
)
from tests.support.tiny_pictures import blip_config


@builder("vilt")
def _(folder: Path) -> None:
    tokenizer = bert_tokenizer()
    tokenizer.model_max_length = 40
    config = t.ViltConfig(
        **{**SMALL, "max_position_embeddings": 40},
        vocab_size=len(tokenizer),
        image_size=32,
        patch_size=8,
        id2label=dict(enumerate(["yes", "no", "red"])),
    )
    images = t.ViltImageProcessorPil(size={"shortest_edge": 32}, size_divisor=8)
    model = t.ViltForQuestionAnswering(config)
    widen(model)
    save(folder, model, t.ViltProcessor(image_processor=images, tokenizer=tokenizer))


@builder("blip-vqa")
def _(folder: Path) -> None:
    tokenizer = bert_tokenizer()
    config = blip_config(tokenizer)
    images = t.BlipImageProcessorPil(size={"height": 32, "width": 32})
    model = t.BlipForQuestionAnswering(config)
    widen(model)
    save(folder, model, t.BlipProcessor(image_processor=images, tokenizer=tokenizer))


@builder("layoutlm")
def _(folder: Path) -> None:
    tokenizer = bert_tokenizer()
    config = t.LayoutLMConfig(vocab_size=len(tokenizer), **SMALL, max_position_embeddings=128)
    model = t.LayoutLMForQuestionAnswering(config)
    widen(model)
    save(folder, model, tokenizer)
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    change_json(folder / "tokenizer_config.json", model_input_names=inputs)


@builder("layoutlmv3")
def _(folder: Path) -> None:
    parts = json.loads(bytes_tokenizer(list(BERT_TOKENS.values())).to_str())["model"]
    tokenizer = t.LayoutLMv3Tokenizer(
        vocab=parts["vocab"],
        merges=[tuple(merge) for merge in parts["merges"]],
        bos_token="[CLS]",
        eos_token="[SEP]",
        **BERT_TOKENS,
    )
    tokenizer.model_max_length = 64
    config = t.LayoutLMv3Config(
        vocab_size=len(tokenizer),
        **SMALL,
        max_position_embeddings=80,
        input_size=32,
        patch_size=8,
        coordinate_size=6,
        shape_size=4,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    images = t.LayoutLMv3ImageProcessorPil(size={"height": 32, "width": 32}, apply_ocr=True)
    model = t.LayoutLMv3ForQuestionAnswering(config)
    widen(model)
    save(folder, model, tokenizer, images)


@builder("donut")
def _(folder: Path) -> None:
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = fast_tokenizer(tokens)
    tokenizer.add_tokens(
        ["<s_docvqa>", "<s_question>", "</s_question>", "<s_answer>", "</s_answer>"]
    )
    vision = t.DonutSwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4
    )
    text = t.MBartConfig(
        vocab_size=len(tokenizer),
        d_model=16,
        decoder_layers=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        max_position_embeddings=128,
        is_decoder=True,
        add_cross_attention=True,
        is_encoder_decoder=False,
    )
    config = t.VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, text)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 0, 2, 1
    model = t.VisionEncoderDecoderModel(config)
    widen(model)
    model.generation_config = t.GenerationConfig(
        decoder_start_token_id=0, pad_token_id=2, eos_token_id=1, bos_token_id=0
    )
    images = t.DonutImageProcessorPil(size={"height": 32, "width": 32})
    save(folder, model, t.DonutProcessor(image_processor=images, tokenizer=tokenizer))


@builder("wav2vec2-sounds")
def _(folder: Path) -> None:
    config = t.Wav2Vec2Config(
        **SMALL,
        vocab_size=32,
        conv_dim=[8] * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        classifier_proj_size=16,
        id2label=dict(enumerate(["cat", "dog", "music"])),
    )
    model = t.Wav2Vec2ForSequenceClassification(config)
    widen(model)
    save(folder, model, t.Wav2Vec2FeatureExtractor())


@builder("ast")
def _(folder: Path) -> None:
    config = t.ASTConfig(
        **SMALL, max_length=128, num_mel_bins=32, id2label=dict(enumerate(["cat", "dog", "music"]))
    )
    model = t.ASTForAudioClassification(config)
    widen(model)
    save(folder, model, t.ASTFeatureExtractor(max_length=128, num_mel_bins=32))


_CLIP = {**CLIP_VISION, "num_frames": 4, "id2label": dict(enumerate(["run", "jump", "sit"]))}


@builder("videomae")
def _(folder: Path) -> None:
    model = t.VideoMAEForVideoClassification(t.VideoMAEConfig(**_CLIP))
    images = t.VideoMAEImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    widen(model)
    save(folder, model, images)


@builder("timesformer")
def _(folder: Path) -> None:
    model = t.TimesformerForVideoClassification(t.TimesformerConfig(**_CLIP))
    images = t.VideoMAEImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    widen(model)
    save(folder, model, images)


@builder("vivit")
def _(folder: Path) -> None:
    config = t.VivitConfig(
        **{name: value for name, value in _CLIP.items() if name != "patch_size"},
        tubelet_size=[2, 8, 8],
    )
    model = t.VivitForVideoClassification(config)
    images = t.VivitImageProcessor(
        size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}
    )
    widen(model)
    save(folder, model, images)


def _fill_codebooks(model: Any) -> None:
    """These are buffers of zeros until a model is trained."""
    for name, buffer in model.named_buffers():
        if name.endswith(("embed", "embed_sum")):
            buffer.normal_()


@builder("encodec")
def _(folder: Path) -> None:
    config = t.EncodecConfig(
        target_bandwidths=[15.0, 30.0],
        sampling_rate=24_000,
        num_filters=4,
        hidden_size=8,
        codebook_size=32,
        codebook_dim=8,
        num_lstm_layers=1,
        upsampling_ratios=[4, 2],
    )
    model = t.EncodecModel(config)
    widen(model)
    _fill_codebooks(model)
    save(folder, model, t.EncodecFeatureExtractor(feature_size=1, sampling_rate=24_000))


@builder("dac")
def _(folder: Path) -> None:
    config = t.DacConfig(
        encoder_hidden_size=8,
        downsampling_ratios=[2, 4],
        decoder_hidden_size=32,
        n_codebooks=2,
        codebook_size=32,
        codebook_dim=4,
        sampling_rate=16_000,
    )
    extractor = t.DacFeatureExtractor(feature_size=1, sampling_rate=16_000, hop_length=8)
    save(folder, t.DacModel(config), extractor)


@builder("mimi")
def _(folder: Path) -> None:
    config = t.MimiConfig(
        **SMALL,
        num_key_value_heads=4,
        head_dim=8,
        num_filters=4,
        codebook_size=32,
        codebook_dim=8,
        vector_quantization_hidden_dimension=8,
        num_quantizers=4,
        upsampling_ratios=[4, 2],
        upsample_groups=4,
        frame_rate=None,
    )
    model = t.MimiModel(config)
    widen(model)
    _fill_codebooks(model)
    save(folder, model, t.EncodecFeatureExtractor(feature_size=1, sampling_rate=24_000))
