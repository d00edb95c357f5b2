"""Token ids of a model's files, compared with the size of its vocabulary.

Libraries make tables that are as long as the highest id: one id of 2**31 would take gigabytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from shared.errors import InvalidModelError
from text_svc.formats.json_files import TOKENIZER, TOKENIZER_CONFIG

# Ids above the vocabulary that are still accepted: published models have some gaps and some added
# tokens that their embeddings do not have.
MAX_GAP = 65_536
# Largest vocabulary of a configuration; the largest published one has 1.1 million tokens.
MAX_VOCABULARY = 1 << 24

_VOCABULARIES = ("vocab.json", "target_vocab.json", "added_tokens.json")
_CONFIGS = ("config.json", "generation_config.json")
_IDS = re.compile(
    r"(_token_ids?|_token_index|suppress_tokens|_words_ids|_decoder_ids|_to_id|_tokens_ids)$"
)
_VOCAB_SIZE = re.compile(r"(^|_)(vocab_size|vocabulary_size|n_vocab)$")


def check_token_ids(contents: Mapping[str, Any]) -> None:
    """Checks the ids of all JSON files of a model.

    Args:
        contents: of the files, by their names.

    Raises:
        InvalidModelError: an id is far above the vocabulary, or a vocabulary is too large.
    """
    configs = {name: contents[name] for name in _CONFIGS if name in contents}
    sizes = [size for config in configs.values() for size in _vocabulary_sizes(config)]
    if sizes and max(sizes) > MAX_VOCABULARY:
        raise InvalidModelError(
            f"config.json has a vocabulary of {max(sizes)} tokens; the limit is {MAX_VOCABULARY}"
        )
    listed = {name: list(_listed(name, contents[name])) for name in contents}
    known = max((0, *sizes, sum(map(len, listed.values()))))
    listed |= {name: list(_configured(config)) for name, config in configs.items()}
    for name, ids in listed.items():
        for number in ids:
            if not isinstance(number, int) or abs(number) >= known + MAX_GAP:
                raise InvalidModelError(
                    f"{name} has the token id {str(number)[:20]}; the model's vocabulary has "
                    f"{known} tokens"
                )


def _vocabulary_sizes(config: Any) -> Iterator[int]:
    for key, value in _items(config):
        if _VOCAB_SIZE.search(key) and isinstance(value, int):
            yield value
        yield from _vocabulary_sizes(value)


def _listed(name: str, content: Any) -> Iterator[Any]:
    """The ids that a file of tokens gives them."""
    if not isinstance(content, dict):
        return
    if name in _VOCABULARIES:
        yield from _numbers(content.values())
    elif name == TOKENIZER_CONFIG:
        decoder = content.get("added_tokens_decoder")
        if isinstance(decoder, dict):
            yield from (int(key) if key.isdecimal() and len(key) < 19 else key for key in decoder)
    elif name == TOKENIZER:
        yield from _of_tokenizer(content)


def _of_tokenizer(content: dict[str, Any]) -> Iterator[Any]:
    model, added = content.get("model"), content.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        yield from _numbers(vocabulary.values())
    elif isinstance(vocabulary, list):
        yield from range(len(vocabulary))
    for each in added if isinstance(added, list) else ():
        yield each.get("id") if isinstance(each, dict) else each


def _numbers(values: Any) -> Iterator[Any]:
    """The values; mappings of languages, which some vocabularies have beside tokens, one deeper."""
    for value in values:
        if isinstance(value, dict):
            yield from value.values()
        else:
            yield value


def _configured(config: Any) -> Iterator[int]:
    """The ids that a configuration names."""
    for key, value in _items(config):
        if _IDS.search(key):
            yield from _integers(value)
        else:
            yield from _configured(value)


def _integers(value: Any) -> Iterator[int]:
    if isinstance(value, int) and not isinstance(value, bool):
        yield value
    elif isinstance(value, list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _integers(each)


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    """Keys and values of an object, and of the objects of a list."""
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, list):
        for each in value:
            yield from _items(each)
