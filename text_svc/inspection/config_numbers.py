"""Numbers of a model's configurations that libraries make lists and tables of.

The shapes of a model are compared with its files when it is loaded, see `torch_models.shapes`. What
is limited here would take time or memory before that, or in a call.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from shared.errors import InvalidModelError

# By the name of the number; far above what published models have.
LIMITS = {
    re.compile(r"(^|_)(layers?|blocks?|depths?|stages|experts|heads)$"): 10_000,
    re.compile(r"(^|_)num_labels$"): 1 << 20,
    re.compile(r"position|(^|_)(n_ctx|seq_len|max_seq_length|max_sequence_length)$"): 1 << 24,
    re.compile(r"^(num_beams|num_beam_groups|num_return_sequences)$"): 64,
    re.compile(r"^(height|width)$"): 1 << 14,
    re.compile(r"^num_frames$"): 1 << 10,
    re.compile(r"^(n_fft|fft_window_size|feature_size|num_mel_bins|n_mels)$"): 1 << 14,
}
FILES = (
    *("config.json", "generation_config.json", "preprocessor_config.json"),
    *("processor_config.json", "tokenizer_config.json"),
)


def check_config_numbers(contents: Mapping[str, Any]) -> None:
    """Checks the numbers of a model's configurations.

    Args:
        contents: of its files, by their names.

    Raises:
        InvalidModelError: one is over its limit.
    """
    for file in FILES:
        for name, number in _numbers("", contents.get(file)):
            for pattern, limit in LIMITS.items():
                if pattern.search(name) and not abs(number) <= limit:  # nor is NaN
                    raise InvalidModelError(
                        f"{file} has {name[:80]} {number}; the limit is {limit}"
                    )


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """All numbers, those of a list under the list's name, and not those of labels."""
    if isinstance(value, dict):
        for key, each in value.items():
            if key != "label2id":  # a label may have any name
                yield from _numbers(key, each)
    elif isinstance(value, list):
        for each in value:
            yield from _numbers(name, each)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value
