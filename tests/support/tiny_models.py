"""Tiny models of every family with random weights, built offline from configurations.

The seeds are fixed: the same folder comes out each time. `build(name, folder)` makes one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as t
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

CORPUS = [
    "a photo of a cat and a dog on the red sofa . hello world what does the image describe ?",
    "this example is about music science history and the price of apples in paris caption speech",
    "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789 .,:;!?'-<>_/()[]",
]
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
SMALL_SEQ2SEQ = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
}
BERT_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_BUILDERS: dict[str, Callable[[Path], None]] = {}


def build(name: str, folder: Path) -> Path:
    """Makes one model in `folder` and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    _BUILDERS[name](folder)
    return folder


def builder(name: str) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    def register(make: Callable[[Path], None]) -> Callable[[Path], None]:
        _BUILDERS[name] = make
        return make

    return register


def _bytes_tokenizer(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def fast_tokenizer(
    tokens: dict[str, str],
    *,
    around: tuple[str, str] | None = None,
    extra: dict[str, str] | None = None,
) -> Any:
    """A tokenizer whose special tokens are these.

    Args:
        tokens: attribute to token.
        around: two of them that are put around a text.
        extra: more of them, of one kind of model alone.
    """
    tokenizer = _bytes_tokenizer(list(dict.fromkeys(tokens.values())))
    if around:
        first, last = around
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{first} $A {last}",
            pair=f"{first} $A {last} $B:1 {last}:1",
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in around],
        )
    return t.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, extra_special_tokens=extra or {}, **tokens
    )


def bert_tokenizer() -> Any:
    """With [CLS] and [SEP], and token types for pairs."""
    tokenizer = fast_tokenizer(BERT_TOKENS, around=("[CLS]", "[SEP]"))
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer.model_max_length = 128
    return tokenizer


def save(folder: Path, *parts: Any) -> None:
    for part in parts:
        part.save_pretrained(folder)


def _bert(folder: Path, kind: Any, **config: Any) -> None:
    tokenizer = bert_tokenizer()
    model = kind(t.BertConfig(vocab_size=len(tokenizer), **SMALL, **config))
    widen(model)
    save(folder, model, tokenizer)


def widen(model: Any) -> None:
    """Larger weights: random ones of the usual size give answers that are all alike."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)


@builder("bert")
def _(folder: Path) -> None:
    _bert(folder, t.BertModel)


@builder("bert-nli")
def _(folder: Path) -> None:
    names = ["contradiction", "neutral", "entailment"]
    _bert(folder, t.BertForSequenceClassification, **_labels(names))


@builder("bert-rank")
def _(folder: Path) -> None:
    _bert(folder, t.BertForSequenceClassification, num_labels=1)


@builder("bert-ner")
def _(folder: Path) -> None:
    _bert(folder, t.BertForTokenClassification, **_labels(["O", "B-PER", "I-PER", "B-LOC"]))


def _labels(names: list[str]) -> dict[str, Any]:
    return {
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
    }


@builder("t5")
def _(folder: Path) -> None:
    tokens = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = fast_tokenizer(tokens)
    config = t.T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )
    model = t.T5ForConditionalGeneration(config)
    widen(model)
    save(folder, model, tokenizer)


@builder("marian")
def _(folder: Path) -> None:
    import sentencepiece

    corpus, prefix = folder / "corpus.txt", folder / "pieces"
    corpus.write_text("\n".join(CORPUS * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(prefix),
        vocab_size=90,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    shutil.copy(folder / "pieces.model", folder / "source.spm")
    (folder / "pieces.model").rename(folder / "target.spm")
    pieces = [line.split("\t")[0] for line in (folder / "pieces.vocab").read_text().splitlines()]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(["</s>", "<unk>", *pieces]))}
    vocabulary["<pad>"] = pad = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    for left in (corpus, folder / "pieces.vocab"):
        left.unlink()
    tokenizer = t.MarianTokenizer(
        source_spm=str(folder / "source.spm"),
        target_spm=str(folder / "target.spm"),
        vocab=str(folder / "vocab.json"),
        source_lang="en",
        target_lang="de",
    )
    config = t.MarianConfig(
        vocab_size=len(vocabulary),
        **SMALL_SEQ2SEQ,
        pad_token_id=pad,
        decoder_start_token_id=pad,
        eos_token_id=0,
        forced_eos_token_id=0,
        max_position_embeddings=64,
    )
    model = t.MarianMTModel(config)
    widen(model)
    save(folder, model, tokenizer)


def clip_images(side: int, **options: Any) -> Any:
    square = {"height": side, "width": side}
    return t.CLIPImageProcessorPil(crop_size=square, **options)


CLIP_VISION = {**SMALL, "image_size": 32, "patch_size": 8}


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


@builder("clap")
def _(folder: Path) -> None:
    tokens = {
        "bos_token": "<s>",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    tokenizer = fast_tokenizer(tokens, around=("<s>", "</s>"))
    tokenizer.model_max_length = 77
    config = t.ClapConfig(
        text_config={
            **SMALL,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 80,
            "bos_token_id": 0,
            "pad_token_id": 1,
            "eos_token_id": 2,
            "projection_dim": 16,
        },
        audio_config={
            "patch_embeds_hidden_size": 16,
            "depths": [1, 1],
            "num_attention_heads": [2, 2],
            "hidden_size": 32,
            "projection_dim": 16,
            "num_mel_bins": 64,
            "spec_size": 256,
            "window_size": 8,
            "patch_size": 4,
            "patch_stride": [4, 4],
        },
        projection_dim=16,
    )
    extractor = t.ClapFeatureExtractor(truncation="rand_trunc", max_length_s=1)
    processor = t.ClapProcessor(feature_extractor=extractor, tokenizer=tokenizer)
    save(folder, t.ClapModel(config), processor)


@builder("vit")
def _(folder: Path) -> None:
    config = t.ViTConfig(**CLIP_VISION, num_labels=3)
    images = t.ViTImageProcessorPil(size={"height": 32, "width": 32})
    save(folder, t.ViTForImageClassification(config), images)


@builder("whisper")
def _(folder: Path) -> None:
    special = [
        *("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>"),
        *("<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>"),
        "<|notimestamps|>",
    ]
    parts = json.loads(_bytes_tokenizer([]).to_str())["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in parts["merges"]]
    tokenizer = t.WhisperTokenizer(vocab=parts["vocab"], merges=merges)
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.add_tokens([f"<|{step * 0.02:.2f}|>" for step in range(1501)])
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in special}
    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    ends = {"pad_token_id": end, "bos_token_id": end, "eos_token_id": end}
    config = t.WhisperConfig(
        vocab_size=len(tokenizer),
        **SMALL_SEQ2SEQ,
        num_mel_bins=80,
        max_target_positions=64,
        decoder_start_token_id=start,
        begin_suppress_tokens=None,
        suppress_tokens=None,
        **ends,
    )
    model = t.WhisperForConditionalGeneration(config)
    model.generation_config = t.GenerationConfig(
        decoder_start_token_id=start,
        max_length=32,
        is_multilingual=True,
        lang_to_id={name: ids[name] for name in ("<|en|>", "<|de|>")},
        task_to_id={name: ids[f"<|{name}|>"] for name in ("translate", "transcribe")},
        no_timestamps_token_id=ids["<|notimestamps|>"],
        prev_sot_token_id=ids["<|startofprev|>"],
        **ends,
    )
    processor = t.WhisperProcessor(
        feature_extractor=t.WhisperFeatureExtractor(), tokenizer=tokenizer
    )
    save(folder, model, processor, model.generation_config)


@builder("moonshine")
def _(folder: Path) -> None:
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    tokenizer = fast_tokenizer(tokens)
    config = t.MoonshineConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        encoder_num_hidden_layers=2,
        decoder_num_hidden_layers=2,
        encoder_num_attention_heads=4,
        decoder_num_attention_heads=4,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=3,
        decoder_start_token_id=0,
    )
    extractor = t.Wav2Vec2FeatureExtractor(return_attention_mask=True, do_normalize=False)
    processor = t.Wav2Vec2Processor(feature_extractor=extractor, tokenizer=tokenizer)
    model = t.MoonshineForConditionalGeneration(config)
    widen(model)
    save(folder, model, processor)


@builder("vits")
def _(folder: Path) -> None:
    letters = {letter: index for index, letter in enumerate("_ abcdefghijklmnopqrstuvwxyz'-")}
    (folder / "vocab.json").write_text(json.dumps(letters))
    tokenizer = t.VitsTokenizer(
        str(folder / "vocab.json"), pad_token="_", unk_token="_", phonemize=False, is_uroman=False
    )
    config = t.VitsConfig(
        vocab_size=len(letters),
        **{**SMALL, "ffn_dim": 64, "flow_size": 32, "spectrogram_bins": 33},
        upsample_initial_channel=32,
        upsample_rates=[8, 8],
        upsample_kernel_sizes=[16, 16],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]],
        prior_encoder_num_wavenet_layers=2,
        posterior_encoder_num_wavenet_layers=2,
        duration_predictor_num_flows=2,
    )
    save(folder, t.VitsModel(config), tokenizer)


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


@builder("llava")
def _(folder: Path) -> None:
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = fast_tokenizer(tokens, extra={"image_token": "<image>"})
    config = t.LlavaConfig(
        text_config={
            **SMALL,
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "num_key_value_heads": 4,
        },
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
    save(folder, t.LlavaForConditionalGeneration(config), processor)


@builder("blip")
def _(folder: Path) -> None:
    tokenizer = bert_tokenizer()
    config = t.BlipConfig(
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
