"""A tokenizer.json out of older vocabularies, for families where transformers 5 makes another one.

Its converters are still those of transformers 4 (`convert_slow_tokenizer.py`), but its classes no
longer use them: what they make of SentencePiece's models lacks normalisers and special tokens. The
converters ask things of a tokenizer in Python that 5 does not have any more; `_Original` says them.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from tokenizers import Tokenizer
from transformers.convert_slow_tokenizer import (
    SLOW_TO_FAST_CONVERTERS,
    SpmConverter,
    generate_merges,
    import_protobuf,
)

from shared.errors import InvalidModelError
from text_svc.formats.json_files import read_json_object

# By classes: what their tokenizers in Python had by default, and converters ask for.
CONVERTED: dict[str, dict[str, Any]] = {
    "AlbertTokenizer": {"do_lower_case": True, "keep_accents": False},
    "BarthezTokenizer": {},
    "BigBirdTokenizer": {},
    "BlenderbotTokenizer": {"add_prefix_space": False},
    "CamembertTokenizer": {},
    "CodeLlamaTokenizer": {"legacy": True},
    "DebertaTokenizer": {"add_prefix_space": False},
    "DebertaV2Tokenizer": {"do_lower_case": False, "split_by_punct": False},
    "FNetTokenizer": {"do_lower_case": False, "keep_accents": True},
    "GemmaTokenizer": {},
    "LlamaTokenizer": {"legacy": True, "add_prefix_space": True},
    "PegasusTokenizer": {"offset": 103, "mask_token_sent": "<mask_1>", "mask_token_id": 3},
    "RemBertTokenizer": {"do_lower_case": False, "keep_accents": True},
    "T5Tokenizer": {"_extra_ids": 100, "legacy": True, "add_prefix_space": True},
    "XGLMTokenizer": {},
    "XLMRobertaTokenizer": {},
    "XLNetTokenizer": {"do_lower_case": False, "keep_accents": False},
}


# Files of a class that it can do without.
_OPTIONAL = ("tokenizer_file", "tokenizer_config_file", "normalizer_file", "target_vocab_file")


def vocabulary_files(kind: type[Any]) -> dict[str, str]:
    """The files that a class reads a vocabulary from, by its arguments; none where it has none."""
    names: dict[str, str] = kind.vocab_files_names
    files = {argument: name for argument, name in names.items() if argument not in _OPTIONAL}
    if not files and "tokenizer_file" in names:  # some do not name it
        is_xglm = kind.__name__ == "XGLMTokenizer"
        return {"vocab_file": "sentencepiece.bpe.model" if is_xglm else "tokenizer.model"}
    return files


def tokenizer_of_vocabulary(kind: type[Any], folder: Path, config: dict[str, Any]) -> Tokenizer:
    """The tokenizer that transformers 4 made of the files of a class.

    Args:
        kind: a class of CONVERTED.
        folder: has its files.
        config: tokenizer_config.json.

    Raises:
        InvalidModelError: the vocabulary lacks a special token.
        OSError, ValueError: a file is broken.
    """
    original = _Original(kind, folder, config)
    kind_of_converter = SLOW_TO_FAST_CONVERTERS[kind.__name__]
    converter: Any = kind_of_converter(original)
    if isinstance(converter, SpmConverter):
        vars(converter)["SpmExtractor"] = _Merges
        original.set_ids(piece for piece, _ in converter.vocab(converter.proto))
    tokenizer: Tokenizer = converter.converted()
    return tokenizer


class _Original:
    """Stands for a tokenizer in Python.

    Attributes:
        vocab_file: path of a SentencePiece model.
        encoder: ids of the tokens of vocab.json.
        bpe_ranks: merges of merges.txt, in their order.
    """

    def __init__(self, kind: type[Any], folder: Path, config: dict[str, Any]) -> None:
        files = vocabulary_files(kind)
        path = folder / files["vocab_file"]
        self.vocab_file = str(path)
        self.encoder: dict[str, int] = {}
        self.bpe_ranks: dict[tuple[str, str], int] = {}
        if "merges_file" in files:
            self.encoder = read_json_object(path)
            self.bpe_ranks = _merges(folder / files["merges_file"])
            self._tokens = {number: token for token, number in self.encoder.items()}
        else:
            self._tokens = _pieces(path)
        self._ids = {token: number for number, token in self._tokens.items()}
        added = config.get("added_tokens_decoder")
        for number, token in added.items() if isinstance(added, dict) else ():
            if isinstance(token, dict):
                self._tokens[int(number)] = str(token.get("content"))
        self._special = {
            name: each.default
            for name, each in inspect.signature(kind.__init__).parameters.items()
            if name.endswith("_token")
        }
        self._special |= {name: config[name] for name in self._special.keys() & config.keys()}
        for name, default in CONVERTED[kind.__name__].items():
            setattr(self, name, config.get(name.removeprefix("_"), default))

    def set_ids(self, tokens: Iterable[str]) -> None:
        """Replaces the ids by those that the converter gives."""
        self._ids = {}
        for number, token in enumerate(tokens):
            self._ids.setdefault(token, number)

    def __getattr__(self, name: str) -> Any:
        """Special tokens and their ids."""
        if name.endswith("_token_id"):
            return self.convert_tokens_to_ids(getattr(self, name.removesuffix("_id")))
        if name.startswith("_") or name not in self._special:
            raise AttributeError(name)
        token = self._special[name]
        return str(token["content"] if isinstance(token, dict) else token)

    def convert_tokens_to_ids(self, token: str) -> int:
        """The id of a token."""
        if token not in self._ids:
            raise InvalidModelError(f"the model's vocabulary lacks its special token {token[:80]}")
        return self._ids[token]

    def convert_ids_to_tokens(self, number: int) -> str | None:
        """The token of an id."""
        return self._tokens.get(number)


class _Merges:
    """Merges of a SentencePiece model of the kind BPE; the converters want them by its scores."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def extract(
        self, scores: list[tuple[str, float]]
    ) -> tuple[dict[str, int], list[tuple[str, str]]]:
        """The ids of the pieces, and the merges."""
        ids = {piece: number for number, piece in _pieces(self._path).items()}
        if "\t" not in ids and "<0x09>" in ids:  # Gemma's converter puts it there
            ids["\t"] = ids["<0x09>"]
        return ids, generate_merges(ids, scores)


def _pieces(path: Path) -> dict[int, str]:
    """The pieces of a SentencePiece model."""
    proto = import_protobuf().ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except DecodeError:
        raise InvalidModelError(f"{path.name} is not a model of SentencePiece") from None
    return {number: piece.piece for number, piece in enumerate(proto.pieces)}


def _merges(path: Path) -> dict[tuple[str, str], int]:
    lines = [line for line in path.read_text().split("\n")[1:] if line.strip()]
    pairs = [line.split() for line in lines]
    return {(pair[0], pair[1]): number for number, pair in enumerate(pairs) if len(pair) == 2}
