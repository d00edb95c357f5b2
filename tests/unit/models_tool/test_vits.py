"""Piper's voices as transformers' VITS."""

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn.functional import conv1d, conv_transpose1d, leaky_relu
from transformers import VitsConfig
from transformers.models.vits.modeling_vits import VitsHifiGan

from tools.models import vits

KERNELS, DILATIONS, RATES = (3, 5), ((1, 2), (2, 6)), (4, 2)
CHANNELS, FLOW = 8, 6


def narrow_decoder() -> vits.Weights:
    """Random weights of a decoder with residual blocks 2."""
    random = np.random.default_rng(0)

    def weight(*shape: int) -> vits.Array:
        return random.normal(0, 0.3, shape).astype(np.float32)

    weights = {"dec.conv_pre.weight": weight(CHANNELS, FLOW, 7)}
    weights["dec.conv_pre.bias"] = weight(CHANNELS)
    channels = CHANNELS
    for up, rate in enumerate(RATES):
        weights[f"dec.ups.{up}.weight"] = weight(channels, channels // 2, 2 * rate)
        channels //= 2
        weights[f"dec.ups.{up}.bias"] = weight(channels)
        for index, kernel in enumerate(KERNELS):
            for number in (0, 1):
                place = f"dec.resblocks.{up * len(KERNELS) + index}.convs.{number}"
                weights[f"{place}.weight"] = weight(channels, channels, kernel)
                weights[f"{place}.bias"] = weight(channels)
    return weights | {"dec.conv_post.weight": weight(1, channels, 7)}


def decoded(weights: vits.Weights, states: torch.Tensor) -> torch.Tensor:
    """HiFi-GAN's generator with its ResBlock2, as in the VITS repository's models.py."""

    def parts(place: str) -> tuple[torch.Tensor, torch.Tensor]:
        return (
            torch.from_numpy(weights[f"dec.{place}.weight"]),
            torch.from_numpy(weights[f"dec.{place}.bias"]),
        )

    states = conv1d(states, *parts("conv_pre"), padding=3)
    for up, rate in enumerate(RATES):
        states = leaky_relu(states, vits.SLOPE)
        states = conv_transpose1d(states, *parts(f"ups.{up}"), stride=rate, padding=rate // 2)
        total = torch.zeros_like(states)
        for index, (kernel, dilations) in enumerate(zip(KERNELS, DILATIONS, strict=True)):
            x = states
            for number, dilation in enumerate(dilations):
                place = f"resblocks.{up * len(KERNELS) + index}.convs.{number}"
                padding = dilation * (kernel - 1) // 2
                y = leaky_relu(x, vits.SLOPE)
                x = x + conv1d(y, *parts(place), dilation=dilation, padding=padding)
            total = total + x
        states = total / len(KERNELS)
    last = torch.from_numpy(weights["dec.conv_post.weight"])
    return torch.tanh(conv1d(leaky_relu(states), last, padding=3))


def test_wide_residual_blocks_compute_what_piper_computes() -> None:
    config = VitsConfig(
        flow_size=FLOW,
        upsample_initial_channel=2 * CHANNELS,
        upsample_rates=RATES,
        upsample_kernel_sizes=[2 * rate for rate in RATES],
        resblock_kernel_sizes=KERNELS,
        resblock_dilation_sizes=DILATIONS,
    )
    weights = narrow_decoder()
    decoder = VitsHifiGan(config)
    wide = {
        name.removeprefix("decoder."): torch.from_numpy(np.ascontiguousarray(array))
        for name, array in vits.wide_decoder(weights)
    }
    decoder.load_state_dict(wide)
    states = torch.randn(1, FLOW, 20, generator=torch.Generator().manual_seed(0)) * 3
    with torch.inference_mode():
        made, wanted = decoder(states), decoded(weights, states)
    assert wanted.std() > 0.1
    assert torch.allclose(made, wanted, atol=1e-5)


def test_names_and_the_numbers_of_flows() -> None:
    place = "duration_predictor.flows.4.conv_dds.convs_pointwise.2.weight"
    assert vits.renamed("dp.flows.7.convs.convs_1x1.2.weight") == place
    assert (
        vits.renamed("flow.flows.6.enc.in_layers.3.bias") == "flow.flows.3.wavenet.in_layers.3.bias"
    )
    layer = "text_encoder.encoder.layers.5"
    assert (
        vits.renamed("enc_p.encoder.attn_layers.5.conv_o.bias")
        == f"{layer}.attention.out_proj.bias"
    )
    assert vits.renamed("enc_p.encoder.norm_layers_2.5.gamma") == f"{layer}.final_layer_norm.weight"


def test_ids_are_pipers() -> None:
    ids = {each: number for number, each in enumerate("_^$ !həlˈoʊ.\u0303-]")}
    tokenizer = Tokenizer.from_str(vits.build_tokenizer(ids))
    # Begin, a blank, then a blank after each phoneme, and the end (Piper's phoneme_ids.py); "ã" is
    # a phoneme and its mark, and what the voice does not know is left out.
    phonemes = [ids[each] for each in "hə -]ˈo\u0303"]
    wanted = [1, 0, *(number for phoneme in phonemes for number in (phoneme, 0)), 2]
    assert tokenizer.encode("hXə 日-]ˈõ").ids == wanted
    assert tokenizer.encode("").ids == [1, 0, 2]
