"""The tokenizer of a sentence encoder, for worker and converter alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from shared.errors import InvalidModelError
from text_svc.formats.json_files import TOKENIZER
from text_svc.formats.recipe import NO_LIMIT, Recipe, max_tokens
from text_svc.torch_models.pretrained import max_positions
from text_svc.torch_models.sentence_encoder import SentenceEncoder
from text_svc.torch_models.tokenizer import check_vocabulary, load_tokenizer


@dataclass(frozen=True)
class SentenceTokens:
    """A tokenizer, which truncates texts at the side that the model's files say.

    Attributes:
        max_tokens: most tokens of a text that the model can read.
        pad_token: the id to pad short texts of a batch with.
    """

    tokenizer: Tokenizer
    max_tokens: int
    pad_token: int


def load_sentence_tokenizer(
    folder: Path, recipe: Recipe, module: SentenceEncoder
) -> SentenceTokens:
    """Reads the tokenizer of a model.

    Args:
        folder: of the model.
        recipe: of the model.
        module: of the model.

    Raises:
        InvalidModelError: there is none that the library tokenizers can run.
        OSError, ValueError: it cannot be read.
    """
    place = folder / recipe.folder
    if recipe.static:
        return _static(place / TOKENIZER, recipe, module.transformer.config.vocab_size)
    wrapper = load_tokenizer(place)
    if not wrapper.is_fast:
        raise InvalidModelError("the model has no tokenizer for the tokenizers library")
    limit = max_tokens(recipe, max_positions(module.transformer), wrapper.model_max_length)
    tokenizer: Tokenizer = wrapper.backend_tokenizer
    tokenizer.enable_truncation(limit, direction=wrapper.truncation_side)
    return SentenceTokens(tokenizer, limit, wrapper.pad_token_id or 0)


def _static(path: Path, recipe: Recipe, rows: int) -> SentenceTokens:
    if not path.exists():
        raise InvalidModelError(f"the model has no {TOKENIZER}")
    tokenizer = Tokenizer.from_file(str(path))
    check_vocabulary(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    highest = max(tokenizer.get_vocab().values(), default=0)
    if highest >= rows:
        raise InvalidModelError(
            f"{TOKENIZER} has the token id {highest}, and the table of vectors has {rows} tokens"
        )
    own = tokenizer.truncation
    return SentenceTokens(
        tokenizer, max_tokens(recipe, None, own["max_length"] if own else NO_LIMIT), 0
    )
