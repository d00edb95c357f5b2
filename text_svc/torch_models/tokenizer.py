"""A model's tokenizer, made in one place for all that needs one.

A tokenizer.json says how a text becomes tokens, step by step, and it is used as it is. transformers
5 does that only in part: its classes rebuild the steps of their own family around the vocabulary
(`TokenizersBackend.convert_to_native_format`), which is wrong where the class that a configuration
names is not the one that the file was made with. So a class gives only what no tokenizer.json has:
default special tokens, the padding side, and languages.

What a configuration then changes about the file's steps is what transformers 4 let it change; its
classes (4.57, `models/*/tokenization_*_fast.py`) are the source of `_apply_configuration`.
"""

from __future__ import annotations

import inspect
import logging
import tempfile
from collections.abc import Sequence
from functools import wraps
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, processors
from transformers import (
    CLIPTokenizer,
    CodeLlamaTokenizer,
    CohereTokenizer,
    GemmaTokenizer,
    GPTNeoXTokenizer,
    LlamaTokenizer,
    M2M100Tokenizer,
    MBart50Tokenizer,
    MBartTokenizer,
    NllbTokenizer,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    SeamlessM4TTokenizer,
    WhisperTokenizer,
)
from transformers.models.auto.tokenization_auto import (
    TOKENIZER_MAPPING_NAMES,
    tokenizer_class_from_name,
)
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from shared.errors import InvalidModelError
from text_svc.formats.json_files import TOKENIZER, TOKENIZER_CONFIG, read_json_object
from text_svc.torch_models.vocabularies import CONVERTED, tokenizer_of_vocabulary, vocabulary_files

log = logging.getLogger(__name__)

# Where a text's language is a token of its post-processor, which therefore is the class's.
_WITH_LANGUAGES = (NllbTokenizer, MBartTokenizer, MBart50Tokenizer, SeamlessM4TTokenizer)
# Those of them whose languages have no ids in a vocabulary of SentencePiece.
_WITHOUT_IDS = (NllbTokenizer, SeamlessM4TTokenizer)
# Classes with methods for what they decode.
_WITH_METHODS = (*_WITH_LANGUAGES, CLIPTokenizer, WhisperTokenizer)
# Whether transformers 4 put the beginning and the end around a text, unless configured: these
# classes replaced the post-processor of tokenizer.json (`update_post_processor`), others kept it.
_ENDS = {
    LlamaTokenizer: (True, False),
    CodeLlamaTokenizer: (True, False),
    GemmaTokenizer: (True, False),
    CohereTokenizer: (True, False),
    GPTNeoXTokenizer: (False, False),
}
# Classes that gave token types in transformers 4, and in 5 do not by themselves.
_WITH_TYPES = {
    *("AlbertTokenizer", "FunnelTokenizer", "HerbertTokenizer", "RemBertTokenizer"),
    *("RoFormerTokenizer", "SplinterTokenizer", "XLNetTokenizer", "PreTrainedTokenizer"),
}
# Steps of a tokenizer. The post-processor adds the special tokens around texts.
_STEPS = ("normalizer", "pre_tokenizer", "decoder")
# Options of a Bert's normaliser: the configuration's name, and that of tokenizer.json.
_BERT_OPTIONS = (
    ("do_lower_case", "lowercase"),
    ("strip_accents", "strip_accents"),
    ("tokenize_chinese_chars", "handle_chinese_chars"),
)
# Words of many scripts, which no vocabulary of any language leaves all unknown.
_WORDS = (
    *("the", "THE", "cat", "SEQUENCE", "a", "A", "1", "2024", ".", "and", "der", "être", "niño"),
    *(
        "это",
        "слово",
        "και",
        "在",
        "中文",
        "日本",
        "の",
        "한국어",
        "هذا",
        "שלום",
        "नमस्ते",
        "ไทย",
        "তুমি",
    ),
)
# Tokens that no text has.
NO_TRUNCATION = 1 << 30
# Tokens of a vocabulary that are tried where all these words are unknown, as in a vocabulary of a
# script, or of symbols, that is not among them.
_TRIED_TOKENS = 2000


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model's folder, offline and without code of the model's own.

    It is one of transformers' tokenizers (`PreTrainedTokenizerBase`).

    Args:
        folder: tokenizer.json, or the files that the model's class of tokenizer reads; and what
            configurations there are.

    Raises:
        InvalidModelError: there is no vocabulary, or a configuration contradicts itself.
        OSError, ValueError: transformers cannot read the files.
    """
    config = read_json_object(folder / TOKENIZER_CONFIG)
    kind, is_named = _class_of(folder, config)
    if (folder / TOKENIZER).exists() and not _reads_own_files(kind, folder):
        if issubclass(kind, M2M100Tokenizer):
            kind = _nllb(folder)
        tokenizer = _from_json(folder, kind, config)
        if not _is_of_5(config):
            _apply_configuration(tokenizer, kind, config, is_named=is_named)
    else:
        tokenizer = _from_older_files(folder, kind, config)
    check_vocabulary(tokenizer)
    size, padding = read_json_object(folder / "config.json").get("vocab_size"), tokenizer.pad_token
    if padding and isinstance(size, int) and tokenizer.pad_token_id >= size:
        log.warning("the model has no such token for padding", extra={"token": padding})
        tokenizer.pad_token = None
    if tokenizer.is_fast:
        # transformers sets its own in each call; what uses the tokenizer without it has the side.
        backend, side = tokenizer.backend_tokenizer, tokenizer.truncation_side
        if (backend.truncation or {}).get("direction", "right") != side:
            backend.enable_truncation(NO_TRUNCATION, direction=side)
    return tokenizer


def set_inputs(tokenizer: Any, folder: Path, model: Any) -> None:
    """Makes a tokenizer give what a model takes: types of tokens tell the texts of a pair apart.

    Args:
        tokenizer: of `load_tokenizer`.
        folder: of the model.
        model: with a `forward` that names its inputs.
    """
    config = read_json_object(folder / TOKENIZER_CONFIG)
    kind, _ = _class_of(folder, config)
    names = list(tokenizer.model_input_names)
    named = str(config.get("tokenizer_class") or kind.__name__).removesuffix("Fast")
    if "model_input_names" not in config and named in _WITH_TYPES and not _is_of_5(config):
        names.append("token_type_ids")
    taken = inspect.signature(model.forward).parameters
    if "token_type_ids" not in taken or getattr(model.config, "type_vocab_size", 2) < 2:
        names = [name for name in names if name != "token_type_ids"]
    tokenizer.model_input_names = list(dict.fromkeys(names))


def read_processors_tokenizers_here() -> None:
    """Makes transformers' processors read their tokenizers by `load_tokenizer`.

    This replaces an internal method, which the pinned version of transformers has.
    """
    name = "_load_tokenizer_from_pretrained"
    own: Any = vars(ProcessorMixin)[name].__func__
    if hasattr(own, "__wrapped__"):
        return

    def load(cls: Any, /, part: str, folder: str, subfolder: str = "", **options: Any) -> Any:
        if part == "tokenizer" and not subfolder:
            return load_tokenizer(Path(folder))
        return own(cls, part, folder, subfolder=subfolder, **options)

    method: Any = classmethod(wraps(own)(load))
    setattr(ProcessorMixin, name, method)


def _class_of(folder: Path, config: dict[str, Any]) -> tuple[type[Any], bool]:
    """The class of a tokenizer, and whether a configuration names it; else the architecture does.

    transformers 4 asked in this order. A class that does not exist, or is a model's own code, is
    the general one.
    """
    model = read_json_object(folder / "config.json")
    for named in (config.get("tokenizer_class"), model.get("tokenizer_class")):
        if isinstance(named, str):
            return _class(named), True
    named = TOKENIZER_MAPPING_NAMES.get(str(model.get("model_type")))
    return (_class(named) if named else TokenizersBackend), False


def _is_of_5(config: dict[str, Any]) -> bool:
    """Whether transformers 5 has written a tokenizer_config.json, and tokenizer.json with it.

    It then names the backend. Its tokenizer.json has all that is configured already.
    """
    return "backend" in config


def _nllb(folder: Path) -> type[Any]:
    """The class of a model of M2M100's architecture with a tokenizer.json; M2M100 itself has none.

    Raises:
        InvalidModelError: the languages are not NLLB's, so it is not known how to name them.
    """
    if _read(folder / TOKENIZER).token_to_id("eng_Latn") is None:
        missing = ", ".join(_missing(M2M100Tokenizer, folder))
        raise InvalidModelError(f"the model's languages are in {missing}, which it does not have")
    return NllbTokenizer


def _read(file: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # noqa: BLE001  # the library raises nothing narrower
        raise InvalidModelError(f"{TOKENIZER} cannot be used: {error}") from None


def _class(name: str) -> type[Any]:
    kind = tokenizer_class_from_name(name) if name.isidentifier() else None
    if not isinstance(kind, type) or not issubclass(kind, PreTrainedTokenizerBase):
        return TokenizersBackend
    return TokenizersBackend if kind.__name__ == "PythonBackend" else kind


def _reads_own_files(kind: type[Any], folder: Path) -> bool:
    """Whether a class exists in Python alone, as in transformers 4, and has its files.

    These do what no tokenizer.json can say, such as phonemes, or two vocabularies.
    """
    return not issubclass(kind, TokenizersBackend) and not _missing(kind, folder)


def _missing(kind: type[Any], folder: Path) -> list[str]:
    names = vocabulary_files(kind).values()
    return [name for name in names if not (folder / name).exists()]


def _from_json(
    folder: Path, kind: type[Any], config: dict[str, Any], made_of: Path | None = None
) -> Any:
    """The tokenizer of tokenizer.json, with what else the class has.

    Args:
        folder: of the model.
        kind: the class.
        config: tokenizer_config.json.
        made_of: a tokenizer.json elsewhere, if the folder has none.
    """
    file = made_of or folder / TOKENIZER
    with_methods = issubclass(kind, _WITH_METHODS)
    if issubclass(kind, CLIPTokenizer):  # it marks the ends of words, other kinds do not
        with_methods = bool(getattr(_read(file).model, "end_of_word_suffix", None))
    # A class without an `__init__` of its own gets the tokenizer of the file.
    made: Any = type(kind.__name__, (kind,), {}) if with_methods else TokenizersBackend
    try:
        tokenizer = made.from_pretrained(
            folder, tokenizer_file=str(file), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        if type(error) is not Exception:  # what the tokenizers library raises
            raise
        raise InvalidModelError(f"{TOKENIZER} cannot be used: {error}") from None
    if with_methods:
        own = _read(file)
        steps = _STEPS if issubclass(kind, _WITH_LANGUAGES) else (*_STEPS, "post_processor")
        for step in steps:
            setattr(tokenizer.backend_tokenizer, step, getattr(own, step))
    else:
        _set_defaults(tokenizer, kind, config)
    if not (folder / TOKENIZER_CONFIG).exists():
        _set_special_ids(tokenizer, read_json_object(folder / "config.json"))
    return tokenizer


def _set_special_ids(tokenizer: Any, model: dict[str, Any]) -> None:
    """The special tokens of config.json, which has ids, where nothing else says them."""
    for name in ("bos_token", "eos_token", "pad_token"):
        number = model.get(f"{name}_id")
        known = isinstance(number, int) and 0 <= number < len(tokenizer)
        if known and getattr(tokenizer, name) is None:
            token = tokenizer.backend_tokenizer.id_to_token(number)
            tokenizer.add_special_tokens({name: token})


def _set_defaults(tokenizer: Any, kind: type[Any], config: dict[str, Any]) -> None:
    """What the class has where the configurations say nothing: special tokens, padding side."""
    if "padding_side" not in config and tokenizer.backend_tokenizer.padding is None:
        tokenizer.padding_side = kind.padding_side
    if "model_input_names" not in config:
        tokenizer.model_input_names = list(kind.model_input_names)
    defaults: dict[str, Any] = {}
    for each in reversed(kind.__mro__):  # what a class does not name is that of its base
        parameters = inspect.signature(vars(each).get("__init__", object)).parameters
        defaults |= {name: parameter.default for name, parameter in parameters.items()}
    for name in tokenizer.SPECIAL_TOKENS_ATTRIBUTES:
        default = defaults.get(name)
        if name in config or getattr(tokenizer, name) is not None or not isinstance(default, str):
            continue
        if tokenizer.backend_tokenizer.token_to_id(default) is not None:
            tokenizer.add_special_tokens({name: default})


def _apply_configuration(
    tokenizer: Any, kind: type[Any], config: dict[str, Any], *, is_named: bool
) -> None:
    """Changes the steps of tokenizer.json where a configuration says so, as in transformers 4.

    Args:
        tokenizer: the steps of which are changed.
        kind: the class of the model's tokenizer.
        config: tokenizer_config.json. What it does not have changes nothing, except for `_ENDS`.
        is_named: whether a configuration names the class.

    Raises:
        InvalidModelError: it asks for a token that it does not have.
    """
    backend = tokenizer.backend_tokenizer
    normalizer = backend.normalizer
    for name, option in _BERT_OPTIONS if kind is not TokenizersBackend else ():
        # No value for accents means that a tokenizer that lowers letters strips them too.
        known = isinstance(config.get(name), bool) or option == "strip_accents"
        if name in config and known and hasattr(normalizer, option):
            setattr(normalizer, option, config[name])
    space = config.get("add_prefix_space")
    if isinstance(space, bool) and hasattr(backend.pre_tokenizer, "add_prefix_space"):
        backend.pre_tokenizer.add_prefix_space = space
    configured = {"add_bos_token", "add_eos_token"} & config.keys()
    if kind in _ENDS and (is_named or configured):
        _set_ends(tokenizer, config, *_ENDS[kind])


def _set_ends(tokenizer: Any, config: dict[str, Any], first: bool, last: bool) -> None:
    """Puts the beginning and the end around a text. For two texts, around each of them."""
    ends: list[tuple[str, int] | None] = []
    for name, default in (("bos_token", first), ("eos_token", last)):
        wanted, token = config.get(f"add_{name}", default), getattr(tokenizer, name)
        if wanted and token is None and f"add_{name}" in config:
            raise InvalidModelError(
                f"{TOKENIZER_CONFIG} has add_{name}, but the model has no {name}"
            )
        ends.append((token, getattr(tokenizer, f"{name}_id")) if wanted and token else None)
    tokenizer.backend_tokenizer.post_processor = _around(*ends)


def _around(first: tuple[str, int] | None, last: tuple[str, int] | None) -> Any:
    def part(text: str, type_id: int) -> list[str]:
        names = [first and first[0], text, last and last[0]]
        return [f"{name}:{type_id}" for name in names if name]

    single = part("$A", 0)
    return processors.TemplateProcessing(
        single=single,
        pair=single + part("$B", 1),
        special_tokens=list({each for each in (first, last) if each}),
    )


def _from_older_files(folder: Path, kind: type[Any], config: dict[str, Any]) -> Any:
    """The tokenizer that transformers makes of a vocabulary in another form.

    Raises:
        InvalidModelError: the class has none of the files that it reads, or they do not have the
            ids of languages.
    """
    if kind is TokenizersBackend and (folder / "tokenizer.model").exists():
        kind = LlamaTokenizer  # as transformers 4 for Mistral, Phi-3, LLaVA and others
    if missing := _missing(kind, folder):
        # transformers takes the ids of these wrong: it does not count the special tokens before.
        unread = [name for name in ("tekken.json", "tiktoken.model") if (folder / name).exists()]
        raise InvalidModelError(
            f"the model has no vocabulary: neither {TOKENIZER} nor {', '.join(missing)}, which "
            f"{kind.__name__} reads" + "".join(f"; {name} alone is not enough" for name in unread)
        )
    if issubclass(kind, _WITHOUT_IDS) and "added_tokens_decoder" not in config:
        raise InvalidModelError(
            f"the model has no {TOKENIZER}, and {TOKENIZER_CONFIG} has no added_tokens_decoder, "
            "which has the ids of its languages"
        )
    if kind.__name__ not in CONVERTED:
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / TOKENIZER
        tokenizer = tokenizer_of_vocabulary(kind, folder, config)
        tokenizer.save(str(file))
        made = _from_json(folder, kind, config, file)
    made.backend_tokenizer.post_processor = tokenizer.post_processor
    _apply_configuration(made, kind, config, is_named=True)
    return made


def check_vocabulary(tokenizer: Any) -> None:
    """Checks that different words become different tokens.

    Raises:
        InvalidModelError: all that was tried became the unknown token, or nothing.
    """
    if not _are_unknown(tokenizer, _WORDS):
        return
    special = set(tokenizer.all_special_ids)
    ids = [each for each in range(min(len(tokenizer), _TRIED_TOKENS)) if each not in special]
    texts = [tokenizer.decode([each]).strip() for each in ids]
    if _are_unknown(tokenizer, [text for text in texts if text]):
        raise InvalidModelError(
            "the model's tokenizer has no vocabulary: every word becomes "
            f"{tokenizer.unk_token or 'unknown'}"
        )


def _are_unknown(tokenizer: Any, texts: Sequence[str]) -> bool:
    unknown = {tokenizer.unk_token_id}
    if tokenizer.is_fast:  # no configuration may name the token that the file has
        backend = tokenizer.backend_tokenizer
        unknown.add(backend.token_to_id(getattr(backend.model, "unk_token", None) or ""))
    return all(
        set(tokenizer(text, add_special_tokens=False)["input_ids"]) <= unknown for text in texts
    )
