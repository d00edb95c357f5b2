"""A voice of Piper, which is VITS in ONNX, to a Hugging Face directory, as float32.

A stand-in for a download from a model hub: Piper's voices are not published in transformers'
format. transformers' `VitsModel` computes with these weights what the ONNX file computes:

- Piper's voices of medium quality have HiFi-GAN's residual block 2, `x + conv(act(x))`, in the
  decoder, and transformers has block 1, `x + conv2(act(conv1(x)))`. With twice the channels, block
  1 can be block 2: the first convolution makes `y` and `-y`, and as the activation is a leaky ReLU
  of slope `s`, `act(y) - act(-y) = (1 + s) y`, which the second one divides by `1 + s`. The other
  half of the channels is zero everywhere else.
- The exporter has multiplied the weight norm out. Here a direction is the weight, and the norm
  that of the direction.
- What only training uses is not in the file, and is zero here: the posterior encoder (of one
  layer), the posterior of the durations, and the first of the durations' flows.

The tokenizer takes phonemes in IPA, as eSpeak NG writes them, and makes the ids that Piper makes:
begin, end, and a blank after each phoneme. It leaves out a character that the voice does not know,
as Piper does.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from tools.models import onnx_file
from tools.models.onnx_file import Graph
from tools.models.smollm2 import write_json

Array = npt.NDArray[np.float32]
Weights = dict[str, Array]

SLOPE = 0.1  # of the decoder's leaky ReLU
SPECTROGRAM_BINS = 513  # of the posterior encoder, which is empty here
IN_LAYER = "flow.flows.0.wavenet.in_layers.0.parametrizations.weight.original1"
BLANK, BEGIN, END = "_", "^", "$"
TOKENIZER_CONFIG = {
    "bos_token": BEGIN,
    "eos_token": END,
    "model_input_names": ["input_ids", "attention_mask"],
    "pad_token": BLANK,
    "tokenizer_class": "PreTrainedTokenizerFast",
}

# Names in Piper and in transformers; all that match are applied, in this order. The flows' numbers
# come before, by `_renumbered`.
RENAMES = (
    (r"^enc_p\.emb\.", "text_encoder.embed_tokens."),
    (r"^enc_p\.proj\.", "text_encoder.project."),
    (r"^enc_p\.encoder\.attn_layers\.(\d+)\.", r"text_encoder.encoder.layers.\1.attention."),
    (r"^enc_p\.encoder\.ffn_layers\.(\d+)\.", r"text_encoder.encoder.layers.\1.feed_forward."),
    (r"^enc_p\.encoder\.norm_layers_1\.(\d+)\.", r"text_encoder.encoder.layers.\1.layer_norm."),
    (
        r"^enc_p\.encoder\.norm_layers_2\.(\d+)\.",
        r"text_encoder.encoder.layers.\1.final_layer_norm.",
    ),
    (r"\.conv_([qkv])\.", r".\1_proj."),
    (r"\.conv_o\.", ".out_proj."),
    (r"\.enc\.", ".wavenet."),
    (r"^dp\.", "duration_predictor."),
    (r"\.(pre|post|proj)\.", r".conv_\1."),
    (r"\.convs\.convs_sep\.", ".conv_dds.convs_dilated."),
    (r"\.convs\.convs_1x1\.", ".conv_dds.convs_pointwise."),
    (r"\.convs\.norms_", ".conv_dds.norms_"),
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
)


def convert(inputs: Mapping[str, Path], out: Path) -> None:
    """Write config, weights and tokenizer of a voice with one speaker to `out`."""
    (source,) = inputs.values()
    (path,) = source.glob("*.onnx")
    settings = json.loads((source / f"{path.name}.json").read_text(encoding="utf-8"))
    graph = onnx_file.read(path)
    weights = transformers_weights(graph)
    ids = {phoneme: number for phoneme, (number,) in settings["phoneme_id_map"].items()}
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    write_json(out / "config.json", model_config(graph, weights, settings))
    (out / "tokenizer.json").write_text(build_tokenizer(ids), encoding="utf-8")
    write_json(out / "tokenizer_config.json", TOKENIZER_CONFIG)


def transformers_weights(graph: Graph) -> Weights:
    """Return the weights by their names in transformers."""
    plain = {renamed(name): array for name, array in _named(graph)}
    decoder = {name: array for name, array in plain.items() if name.startswith("dec.")}
    weights = dict(wide_decoder(decoder))
    for name, array in plain.items():
        if name.endswith(".weight") and ".attention." in name:
            weights[name] = np.ascontiguousarray(array[:, :, 0])  # a Linear instead of a Conv1d
        elif name.endswith(".weight") and ".wavenet." in name:
            weights |= _weight_norm(name, _lengths(array), array)
        elif name not in decoder:
            weights[name] = array
    weights |= dict(_unused(weights))
    return {name: np.ascontiguousarray(array, np.float32) for name, array in weights.items()}


def _named(graph: Graph) -> Iterator[tuple[str, Array]]:
    """The weights by Piper's names, which a convolution's node has even if its weight has not."""
    for node in graph.nodes:
        if node.operation in ("Conv", "ConvTranspose"):
            for kind, name in zip(("weight", "bias"), node.inputs[1:], strict=False):
                yield f"{node.place}.{kind}", graph.arrays[name]
        elif node.operation == "Gather" and node.inputs[1] == "input":
            yield f"{node.place}.weight", graph.arrays[node.inputs[0]]
    for name, array in graph.arrays.items():
        if name.endswith((".gamma", ".beta", ".emb_rel_k", ".emb_rel_v")):
            yield name, array
    yield "dp.flows.0.translate", graph.arrays["dp.flows.0.m"]
    # As in `_lengths`.
    yield (
        "dp.flows.0.log_scale",
        -np.log(graph.arrays["/dp/flows.0/Exp_output_0"], dtype=np.float64),
    )


def renamed(name: str) -> str:
    """Return a weight's name in transformers, outside of the decoder."""
    # In Piper, a flow that only flips the channels follows each other one.
    name = re.sub(r"^(dp|flow)\.flows\.(\d+)", _renumbered, name)
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _renumbered(found: re.Match[str]) -> str:
    return f"{found[1]}.flows.{(int(found[2]) + 1) // 2}"


def wide_decoder(narrow: Weights) -> Iterator[tuple[str, Array]]:
    """Yield the decoder with residual blocks 1 that does what `narrow`, with blocks 2, does."""
    for name, array in narrow.items():
        _, place, *number, kind = name.split(".")
        if place == "resblocks":
            block, _, index = number
            parts = (f"decoder.resblocks.{block}.convs{part}.{index}.{kind}" for part in (1, 2))
            yield from zip(parts, _residual(array), strict=True)
        elif place == "ups":
            yield (
                f"decoder.upsampler.{number[0]}.{kind}",
                _padded(array, axes=2 if kind == "weight" else 1),
            )
        elif place == "conv_pre":
            yield f"decoder.{place}.{kind}", _padded(array, axes=1)
        else:  # one channel comes out of the last convolution
            yield f"decoder.{place}.{kind}", _padded(array.swapaxes(0, 1), axes=1).swapaxes(0, 1)


def _padded(array: Array, axes: int) -> Array:
    """The array with as many zeros again behind it, along its first axes."""
    widths = [(0, size) if axis < axes else (0, 0) for axis, size in enumerate(array.shape)]
    return np.pad(array, widths)


def _residual(array: Array) -> tuple[Array, Array]:
    """Both convolutions, or their biases, of which block 1 makes the one of block 2."""
    channels, rest = len(array), array.shape[1:]
    if not rest:
        return np.concatenate([array, -array]), np.zeros(2 * channels, np.float32)
    first = np.pad(np.concatenate([array, -array]), [(0, 0), (0, channels), (0, 0)])
    second = np.zeros((2 * channels, 2 * channels, rest[-1]), np.float32)
    each, middle = np.arange(channels), rest[-1] // 2
    second[each, each, middle] = 1 / (1 + SLOPE)
    second[each, each + channels, middle] = -1 / (1 + SLOPE)
    return first, second


def _lengths(array: Array) -> Array:
    """The length of each row. In float64, so that each processor rounds to the same float32."""
    squares = np.square(array.reshape(len(array), -1), dtype=np.float64)
    lengths: Array = np.sqrt(squares.sum(axis=1)).astype(np.float32)
    return lengths.reshape(-1, 1, 1)


def _weight_norm(name: str, norm: Array, direction: Array) -> Weights:
    place = f"{name.removesuffix('.weight')}.parametrizations.weight.original"
    return {f"{place}0": norm, f"{place}1": direction}


def _unused(weights: Weights) -> Iterator[tuple[str, Array]]:
    """What only training uses, and transformers' model has."""
    predictor = "duration_predictor"
    for name, array in weights.items():
        if name.startswith(f"{predictor}.flows.2."):
            for flow in ("flows.1", *(f"post_flows.{number}" for number in range(1, 5))):
                yield name.replace("flows.2", flow), np.zeros_like(array)
        if name.startswith(f"{predictor}.flows.0."):
            yield name.replace("flows", "post_flows"), np.zeros_like(array)
        if name.startswith(f"{predictor}.flows.2.conv_pre."):
            yield name.replace("flows.2.conv_pre", "post_conv_pre"), np.zeros_like(array)
        if name.startswith((f"{predictor}.conv_dds.", f"{predictor}.conv_proj.")):
            yield name.replace(".conv", ".post_conv", 1), np.zeros_like(array)
    doubled, width, size = weights[IN_LAYER].shape
    posterior = {
        "conv_pre.weight": (width, SPECTROGRAM_BINS, 1),
        "conv_pre.bias": (width,),
        "wavenet.in_layers.0.bias": (doubled,),
        "wavenet.res_skip_layers.0.bias": (width,),
        "conv_proj.weight": weights["text_encoder.project.weight"].shape,
        "conv_proj.bias": weights["text_encoder.project.bias"].shape,
    }
    for name, shape in posterior.items():
        yield f"posterior_encoder.{name}", np.zeros(shape, np.float32)
    for name, shape in {"in": (doubled, width, size), "res_skip": (width, width, 1)}.items():
        norm = np.zeros((shape[0], 1, 1), np.float32)
        layer = f"posterior_encoder.wavenet.{name}_layers.0.weight"
        yield from _weight_norm(layer, norm, np.ones(shape, np.float32)).items()


def model_config(graph: Graph, weights: Weights, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return config.json; what it leaves out is the paper's, as are transformers' defaults."""
    layers = {
        node.place: {name: numbers[0] for name, numbers in node.numbers.items()}
        for node in graph.nodes
        if node.operation in ("Conv", "ConvTranspose")
    }
    ups = [layers[place] for place in layers if place.startswith("dec.ups.")]
    blocks = [place for place in layers if re.fullmatch(r"dec\.resblocks\.\d+\.convs\.0", place)]
    kernels = [
        [layer for place, layer in layers.items() if place.startswith(f"dec.resblocks.{index}.")]
        for index in range(len(blocks) // len(ups))
    ]
    vocabulary, width = weights["text_encoder.embed_tokens.weight"].shape
    encoder = "text_encoder.encoder.layers"
    inference = settings["inference"]
    return {
        "architectures": ["VitsModel"],
        "dtype": "float32",
        "ffn_dim": len(weights[f"{encoder}.0.feed_forward.conv_1.bias"]),
        "flow_size": len(weights["text_encoder.project.bias"]) // 2,
        "hidden_size": width,
        "leaky_relu_slope": SLOPE,
        "model_type": "vits",
        "noise_scale": inference["noise_scale"],
        "noise_scale_duration": inference["noise_w"],
        "num_hidden_layers": sum(name.endswith("final_layer_norm.bias") for name in weights),
        "num_speakers": settings["num_speakers"],
        "posterior_encoder_num_wavenet_layers": 1,
        "resblock_dilation_sizes": [[each["dilations"] for each in kernel] for kernel in kernels],
        "resblock_kernel_sizes": [kernel[0]["kernel_shape"] for kernel in kernels],
        "sampling_rate": settings["audio"]["sample_rate"],
        "speaking_rate": 1 / inference["length_scale"],
        "spectrogram_bins": SPECTROGRAM_BINS,
        "upsample_initial_channel": len(weights["decoder.conv_pre.bias"]),
        "upsample_kernel_sizes": [each["kernel_shape"] for each in ups],
        "upsample_rates": [each["strides"] for each in ups],
        "vocab_size": vocabulary,
    }


def build_tokenizer(ids: Mapping[str, int]) -> str:
    """Return tokenizer.json, of phonemes and their ids."""
    tokenizer = Tokenizer(models.WordLevel(dict(ids), unk_token=BLANK))
    phonemes = "".join(re.escape(each) for each in ids if each not in (BLANK, BEGIN, END))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFD(),
            normalizers.Replace(Regex(f"[^{phonemes}]"), ""),
            normalizers.Replace(Regex(r"(?<=.)"), BLANK),  # after each character
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    written = json.loads(tokenizer.to_str())
    # The library's own text form of a template has "$" as its sign for a sequence.
    special = [{"SpecialToken": {"id": each, "type_id": 0}} for each in (BEGIN, BLANK, END)]
    sequence = {"Sequence": {"id": "A", "type_id": 0}}
    written["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [*special[:2], sequence, special[2]],
        "pair": [*special[:2], sequence, {"Sequence": {"id": "B", "type_id": 0}}, special[2]],
        "special_tokens": {
            each: {"id": each, "ids": [ids[each]], "tokens": [each]} for each in (BEGIN, BLANK, END)
        },
    }
    return str(Tokenizer.from_str(json.dumps(written)).to_str(pretty=True))
