"""Rules of a model's generation config beyond the sampling parameters of a request.

transformers' `generate` follows them; batches on torch and OpenVINO's do not, so a model that has
one runs `generate`.
"""

from __future__ import annotations

from typing import Any

from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    LogitsProcessor,
    MinPLogitsWarper,
    TypicalLogitsWarper,
)

# Names in the generation config, with the value that is off; None is off too.
PROCESSORS: dict[str, Any] = {
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "bad_words_ids": [],
    "sequence_bias": {},
    "min_length": 0,
    "min_new_tokens": 0,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "suppress_tokens": [],
    "begin_suppress_tokens": [],
    "exponential_decay_length_penalty": None,
    "guidance_scale": 1.0,
    "watermarking_config": None,
}
# The same for rules of sampled tokens, with their classes, in the order of `generate`.
WARPERS: dict[str, tuple[Any, Any]] = {
    "min_p": (0.0, MinPLogitsWarper),
    "typical_p": (1.0, TypicalLogitsWarper),
    "epsilon_cutoff": (0.0, EpsilonLogitsWarper),
    "eta_cutoff": (0.0, EtaLogitsWarper),
}


def decoding_rules(config: Any) -> list[str]:
    """The names of the rules that a generation config sets."""
    off = PROCESSORS | {name: value for name, (value, _) in WARPERS.items()}
    return [name for name, value in off.items() if getattr(config, name, None) not in (None, value)]


def own_warpers(config: Any, device: Any) -> list[LogitsProcessor]:
    """What a generation config does to the scores of sampled tokens, after top_p.

    Raises:
        ValueError: a value is out of its range.
    """
    warpers: list[LogitsProcessor] = []
    for name in filter(WARPERS.__contains__, decoding_rules(config)):
        kind = WARPERS[name][1]
        on_device = {"device": device} if kind is EtaLogitsWarper else {}
        warpers.append(kind(getattr(config, name), **on_device))
    return warpers
