"""Tiny models that find things in images: detectors, segmenters, masks, depth, features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers as t

from tests.support.tiny_parts import (
    CLIP_VISION,
    SMALL,
    bert_tokenizer,
    builder,
    fast_tokenizer,
    save,
    widen,
)

LABELS = {0: "cat", 1: "dog", 2: "sofa"}
SIDE = 64
SQUARE = {"height": SIDE, "width": SIDE}
_QUERIES = 7
_TRANSFORMER = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 8,
    "decoder_attention_heads": 8,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "num_queries": _QUERIES,
}
_STAGES = ["stage1", "stage2", "stage3", "stage4"]
_FOUR = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
_EDGES = {"shortest_edge": 48, "longest_edge": SIDE}


def _resnet(*stages: str) -> Any:
    return t.ResNetConfig(**_FOUR, embedding_size=8, layer_type="basic", out_features=list(stages))


def _swin(*stages: str) -> Any:
    return t.SwinConfig(
        image_size=SIDE,
        patch_size=4,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 2, 4],
        window_size=4,
        out_features=list(stages),
    )


def _save(folder: Path, model: Any, images: Any) -> None:
    widen(model)
    save(folder, model.eval(), images)


def save_settings(folder: Path, **settings: Any) -> None:
    """Writes preprocessor_config.json, for a processor that is not there without torchvision."""
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


@builder("detr")
def _(folder: Path) -> None:
    config = t.DetrConfig(
        use_timm_backbone=False, backbone_config=_resnet("stage4"), id2label=LABELS, **_TRANSFORMER
    )
    _save(folder, t.DetrForObjectDetection(config), t.DetrImageProcessorPil(size=_EDGES))


@builder("conditional-detr")
def _(folder: Path) -> None:
    config = t.ConditionalDetrConfig(
        use_timm_backbone=False, backbone_config=_resnet("stage4"), id2label=LABELS, **_TRANSFORMER
    )
    images = t.ConditionalDetrImageProcessorPil(size=_EDGES)
    _save(folder, t.ConditionalDetrForObjectDetection(config), images)


@builder("yolos")
def _(folder: Path) -> None:
    config = t.YolosConfig(
        **SMALL, image_size=[SIDE, SIDE], num_detection_tokens=_QUERIES, id2label=LABELS
    )
    _save(folder, t.YolosForObjectDetection(config), t.YolosImageProcessorPil(size=_EDGES))


def _rt_detr(backbone: Any, channels: list[int]) -> dict[str, Any]:
    return {
        "backbone_config": backbone,
        "encoder_in_channels": channels,
        "encoder_hidden_dim": 32,
        "encoder_ffn_dim": 64,
        "encoder_attention_heads": 2,
        "d_model": 32,
        "decoder_in_channels": [32, 32, 32],
        "decoder_ffn_dim": 64,
        "decoder_attention_heads": 2,
        "decoder_layers": 2,
        "num_queries": _QUERIES,
        "num_denoising": 0,
        "id2label": LABELS,
    }


@builder("rt-detr")
def _(folder: Path) -> None:
    backbone = t.RTDetrResNetConfig(
        **_FOUR, embedding_size=8, layer_type="basic", out_features=_STAGES[1:]
    )
    config = t.RTDetrConfig(**_rt_detr(backbone, [8, 16, 16]))
    _save(folder, t.RTDetrForObjectDetection(config), t.RTDetrImageProcessorPil(size=SQUARE))


@builder("d-fine")
def _(folder: Path) -> None:
    backbone = t.HGNetV2Config(
        stem_channels=[3, 8, 8],
        stage_in_channels=[8, 8, 16, 16],
        stage_mid_channels=[8, 8, 8, 8],
        stage_out_channels=[8, 16, 16, 16],
        stage_num_blocks=[1, 1, 1, 1],
        stage_downsample=[False, True, True, True],
        stage_light_block=[False] * 4,
        stage_kernel_size=[3] * 4,
        stage_numb_of_layers=[1] * 4,
        embedding_size=8,
        hidden_sizes=[8, 16, 16, 16],
        depths=[1, 1, 1, 1],
        out_features=_STAGES[1:],
    )
    config = t.DFineConfig(**_rt_detr(backbone, [16, 16, 16]))
    _save(folder, t.DFineForObjectDetection(config), t.RTDetrImageProcessorPil(size=SQUARE))


def _owl_tokenizer() -> Any:
    # OWL-ViT takes a text whose first token is 0 for padding.
    tokens = {"pad_token": "!", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = fast_tokenizer(tokens, around=("<s>", "</s>"))
    tokenizer.model_max_length = 16
    return tokenizer


@builder("owlvit")
def _(folder: Path) -> None:
    tokenizer = _owl_tokenizer()
    text = {**SMALL, "vocab_size": len(tokenizer), "max_position_embeddings": 16}
    text |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = t.OwlViTConfig(text_config=text, vision_config=CLIP_VISION, projection_dim=32)
    images = t.OwlViTImageProcessorPil(size={"height": 32, "width": 32})
    processor = t.OwlViTProcessor(image_processor=images, tokenizer=tokenizer)
    _save(folder, t.OwlViTForObjectDetection(config), processor)


@builder("owlv2")
def _(folder: Path) -> None:
    tokenizer = _owl_tokenizer()
    text = {**SMALL, "vocab_size": len(tokenizer), "max_position_embeddings": 16}
    text |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = t.Owlv2Config(text_config=text, vision_config=CLIP_VISION, projection_dim=32)
    images = t.Owlv2ImageProcessorPil(size={"height": 32, "width": 32})
    processor = t.Owlv2Processor(image_processor=images, tokenizer=tokenizer)
    _save(folder, t.Owlv2ForObjectDetection(config), processor)


@builder("grounding-dino")
def _(folder: Path) -> None:
    tokenizer = bert_tokenizer()
    config = t.GroundingDinoConfig(
        backbone_config=_swin(*_STAGES[1:]),
        text_config={**SMALL, "model_type": "bert", "vocab_size": len(tokenizer)},
        **{**_TRANSFORMER, "num_queries": 20, "d_model": 64},
        max_text_len=64,
    )
    images = t.GroundingDinoImageProcessorPil(size=_EDGES)
    processor = t.GroundingDinoProcessor(image_processor=images, tokenizer=tokenizer)
    save(folder, t.GroundingDinoForObjectDetection(config).eval(), processor)


@builder("segformer")
def _(folder: Path) -> None:
    config = t.SegformerConfig(
        **_FOUR, num_attention_heads=[1, 2, 2, 4], decoder_hidden_size=16, id2label=LABELS
    )
    model = t.SegformerForSemanticSegmentation(config)
    widen(model)
    save(folder, model.eval())
    save_settings(folder, image_processor_type="SegformerImageProcessor", size=SQUARE)


@builder("segformer-classifier")
def _(folder: Path) -> None:
    config = t.SegformerConfig(**_FOUR, num_attention_heads=[1, 2, 2, 4], id2label=LABELS)
    save(folder, t.SegformerForImageClassification(config).eval())
    save_settings(folder, image_processor_type="SegformerImageProcessor", size=SQUARE)


@builder("mask2former")
def _(folder: Path) -> None:
    config = t.Mask2FormerConfig(
        backbone_config=_swin(*_STAGES),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=64,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=4,
        dim_feedforward=64,
        num_queries=_QUERIES,
        id2label=LABELS,
    )
    model = t.Mask2FormerForUniversalSegmentation(config)
    widen(model.class_predictor)
    _save(folder, model, t.Mask2FormerImageProcessorPil(size=SQUARE))


@builder("maskformer")
def _(folder: Path) -> None:
    decoder = t.DetrConfig(
        use_timm_backbone=False, backbone_config=_resnet("stage4"), **_TRANSFORMER
    )
    config = t.MaskFormerConfig(
        backbone_config=_swin(*_STAGES),
        decoder_config=decoder,
        fpn_feature_size=32,
        mask_feature_size=32,
        id2label=LABELS,
    )
    images = t.MaskFormerImageProcessorPil(size=SQUARE)
    _save(folder, t.MaskFormerForInstanceSegmentation(config), images)


@builder("detr-panoptic")
def _(folder: Path) -> None:
    config = t.DetrConfig(
        use_timm_backbone=False, backbone_config=_resnet(*_STAGES), id2label=LABELS, **_TRANSFORMER
    )
    _save(folder, t.DetrForSegmentation(config), t.DetrImageProcessorPil(size=_EDGES))


def _save_eomt(folder: Path, **settings: Any) -> None:
    config = t.EomtConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIDE,
        num_blocks=1,
        num_queries=_QUERIES,
        num_upscale_blocks=1,
        id2label=LABELS,
    )
    _save(folder, t.EomtForUniversalSegmentation(config), t.EomtImageProcessorPil(**settings))


@builder("eomt")
def _(folder: Path) -> None:
    _save_eomt(folder, size={"shortest_edge": SIDE, "longest_edge": SIDE}, do_pad=True)


@builder("eomt-semantic")
def _(folder: Path) -> None:
    size = {"shortest_edge": SIDE, "longest_edge": None}
    _save_eomt(folder, size=size, do_split_image=True, do_pad=False)


@builder("oneformer")
def _(folder: Path) -> None:
    tokenizer = _owl_tokenizer()
    tokenizer.model_max_length = 77
    config = t.OneFormerConfig(
        backbone_config=_swin(*_STAGES),
        hidden_dim=32,
        mask_dim=32,
        conv_dim=32,
        num_queries=_QUERIES,
        task_seq_len=77,
        text_encoder_vocab_size=len(tokenizer),
        text_encoder_width=32,
        encoder_layers=2,
        encoder_feedforward_dim=64,
        dim_feedforward=64,
        decoder_layers=2,
        num_attention_heads=4,
        is_training=False,
        id2label=LABELS,
    )
    _save(folder, t.OneFormerForUniversalSegmentation(config), tokenizer)
    images = t.OneFormerImageProcessorPil(size=SQUARE)
    images.class_info_file = "ade20k_panoptic.json"
    images.save_pretrained(folder)


_SAM_VISION = {
    "hidden_size": 32,
    "output_channels": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": 8,
    "mlp_dim": 64,
    "window_size": 4,
    "global_attn_indexes": [1],
    "num_pos_feats": 8,
}
_SAM_PROMPTS = {
    "hidden_size": 16,
    "image_size": SIDE,
    "patch_size": 8,
    "mask_input_channels": 4,
    "image_embedding_size": 8,
}
_SAM_DECODER = {
    "hidden_size": 16,
    "mlp_dim": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "iou_head_hidden_dim": 16,
}


def _sam_images() -> Any:
    return t.SamImageProcessorPil(
        size={"longest_edge": SIDE}, pad_size=SQUARE, mask_size={"longest_edge": 32}
    )


@builder("sam")
def _(folder: Path) -> None:
    config = t.SamConfig(
        vision_config=_SAM_VISION,
        prompt_encoder_config=_SAM_PROMPTS,
        mask_decoder_config=_SAM_DECODER,
    )
    _save(folder, t.SamModel(config), t.SamProcessor(_sam_images()))


@builder("sam-hq")
def _(folder: Path) -> None:
    config = t.SamHQConfig(
        vision_config=_SAM_VISION,
        prompt_encoder_config=_SAM_PROMPTS,
        mask_decoder_config={**_SAM_DECODER, "vit_dim": 32},
    )
    _save(folder, t.SamHQModel(config), t.SamHQProcessor(_sam_images()))


def sam2_config(**config: Any) -> dict[str, Any]:
    """The parts of a tiny SAM 2; `config` adds to that of its eyes."""
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 8,
        "num_attention_heads": 1,
        "image_size": [SIDE, SIDE],
        "patch_kernel_size": [7, 7],
        "patch_stride": [4, 4],
        "patch_padding": [3, 3],
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 1, 2, 4],
        "window_size_per_stage": [4, 4, 4, 4],
        "global_attention_blocks": [3],
        "window_positional_embedding_background_size": [4, 4],
    }
    return {
        "vision_config": {
            "model_type": "sam2_vision_model",
            "backbone_config": backbone,
            "backbone_channel_list": [64, 32, 16, 8],
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
            "fpn_hidden_size": 32,
            **config,
        },
        "prompt_encoder_config": {**_SAM_PROMPTS, "hidden_size": 32, "patch_size": 16},
        "mask_decoder_config": {**_SAM_DECODER, "hidden_size": 32},
    }


@builder("sam2")
def _(folder: Path) -> None:
    model = t.Sam2Model(t.Sam2Config(**sam2_config()))
    widen(model)
    save(folder, model.eval())
    save_settings(folder, image_processor_type="Sam2ImageProcessorFast", size=SQUARE, resample=2)


@builder("depth-anything")
def _(folder: Path) -> None:
    backbone = t.Dinov2Config(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=56,
        patch_size=14,
        out_features=_STAGES,
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    config = t.DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=32,
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=16,
        head_hidden_size=8,
        patch_size=14,
    )
    images = t.DPTImageProcessorPil(
        size={"height": 56, "width": 56}, keep_aspect_ratio=True, ensure_multiple_of=14
    )
    save(folder, t.DepthAnythingForDepthEstimation(config).eval(), images)


@builder("glpn")
def _(folder: Path) -> None:
    config = t.GLPNConfig(**_FOUR, num_attention_heads=[1, 2, 2, 4], decoder_hidden_size=8)
    save(folder, t.GLPNForDepthEstimation(config).eval(), t.GLPNImageProcessorPil())


@builder("zoedepth")
def _(folder: Path) -> None:
    backbone = t.BeitConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=SIDE,
        patch_size=16,
        out_features=_STAGES,
        reshape_hidden_states=False,
        use_relative_position_bias=True,
    )
    bins = {"n_bins": 8, "min_depth": 0.001, "max_depth": 10.0, "name": "nyu"}
    config = t.ZoeDepthConfig(
        backbone_config=backbone,
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=16,
        bottleneck_features=16,
        num_relative_features=8,
        bin_embedding_dim=16,
        num_attractors=[4, 2, 2, 1],
        bin_configurations=[bins],
    )
    images = t.ZoeDepthImageProcessorPil(size=SQUARE)
    save(folder, t.ZoeDepthForDepthEstimation(config).eval(), images)


@builder("depth-pro")
def _(folder: Path) -> None:
    eyes = {
        "model_type": "dinov2",
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 4,
    }
    config = t.DepthProConfig(
        fusion_hidden_size=16,
        patch_size=32,
        intermediate_hook_ids=[1, 0],
        intermediate_feature_dims=[16, 16],
        scaled_images_ratios=[0.5, 1.0],
        scaled_images_overlap_ratios=[0.0, 0.25],
        scaled_images_feature_dims=[16, 16],
        merge_padding_value=1,
        use_fov_model=True,
        image_model_config=eyes,
        patch_model_config=eyes,
        fov_model_config=eyes,
    )
    save(folder, t.DepthProForDepthEstimation(config).eval())
    save_settings(folder, image_processor_type="DepthProImageProcessor", size=SQUARE)


@builder("vit-features")
def _(folder: Path) -> None:
    images = t.ViTImageProcessorPil(size={"height": 32, "width": 32})
    save(folder, t.ViTModel(t.ViTConfig(**CLIP_VISION)).eval(), images)


@builder("resnet-features")
def _(folder: Path) -> None:
    images = t.ConvNextImageProcessorPil(size={"shortest_edge": 32})
    save(folder, t.ResNetModel(_resnet("stage4")).eval(), images)


@builder("vit-mae")
def _(folder: Path) -> None:
    images = t.ViTImageProcessorPil(size={"height": 32, "width": 32})
    save(folder, t.ViTMAEModel(t.ViTMAEConfig(**CLIP_VISION)).eval(), images)


@builder("dinov3")
def _(folder: Path) -> None:
    save(folder, t.DINOv3ViTModel(t.DINOv3ViTConfig(**CLIP_VISION)).eval())
    size = {"height": 32, "width": 32}
    save_settings(folder, image_processor_type="DINOv3ViTImageProcessorFast", size=size)


@builder("swin2sr")
def _(folder: Path) -> None:
    config = t.Swin2SRConfig(
        image_size=16, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=8, upscale=2
    )
    images = t.Swin2SRImageProcessorPil()
    save(folder, t.Swin2SRForImageSuperResolution(config).eval(), images)
