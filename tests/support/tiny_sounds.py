"""Tiny models of sounds: CLAP, Whisper, Moonshine, VITS."""

from __future__ import annotations

import json
from pathlib import Path

import transformers as t

from tests.support.tiny_parts import (
    SMALL,
    SMALL_SEQ2SEQ,
    builder,
    bytes_tokenizer,
    fast_tokenizer,
    save,
    widen,
)


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


@builder("whisper")
def _(folder: Path) -> None:
    special = [
        *("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>"),
        *("<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>"),
        "<|notimestamps|>",
    ]
    parts = json.loads(bytes_tokenizer([]).to_str())["model"]
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


@builder("wav2vec2")
def _(folder: Path) -> None:
    letters = {letter: index for index, letter in enumerate(["<pad>", *"|abcdefghijklmnop"])}
    (folder / "vocab.json").write_text(json.dumps(letters))
    tokenizer = t.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), unk_token="<pad>")
    config = t.Wav2Vec2Config(
        vocab_size=len(letters),
        **SMALL,
        conv_dim=[8] * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
    )
    processor = t.Wav2Vec2Processor(
        feature_extractor=t.Wav2Vec2FeatureExtractor(), tokenizer=tokenizer
    )
    model = t.Wav2Vec2ForCTC(config)
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
