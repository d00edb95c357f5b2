"""How a text becomes a vector, as a model's sentence-transformers files specify it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from shared.errors import InvalidModelError, InvalidPathError
from shared.model_ids import check_file_path
from text_svc.formats.json_files import read_json, read_json_object

# If no file specifies how long a text may be.
DEFAULT_MAX_TOKENS = 512
# A tokenizer without a limit of its own says int(1e30).
_NO_LIMIT = 1 << 20

# In the order in which sentence-transformers joins them when a model has several.
POOLINGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len": "pooling_mode_mean_sqrt_len_tokens",
    "weighted_mean": "pooling_mode_weightedmean_tokens",
    "last": "pooling_mode_lasttoken",
}
# Activations of Dense modules, by the last part of their class's name.
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid")


@dataclass(frozen=True)
class Dense:
    """A linear layer after the pooling: its folder in the model's, and its activation."""

    folder: str
    activation: str
    bias: bool


@dataclass(frozen=True)
class Recipe:
    """The steps from token vectors to a sentence vector.

    Attributes:
        poolings: keys of `POOLINGS`; the vectors of several are joined.
        dense: linear layers after the pooling.
        normalize: whether vectors have length 1.
        max_tokens: tokens of a text at most, if the files say so.
        lower_case: whether texts are lowered before the tokenizer sees them.
        prompts: texts that are put before an input, by name ("query", "document").
        default_prompt: the name of the one used when a caller names none; "" is none.
    """

    poolings: tuple[str, ...] = ("mean",)
    dense: tuple[Dense, ...] = ()
    normalize: bool = True
    max_tokens: int | None = None
    lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str = ""


def read_recipe(folder: Path) -> Recipe:
    """Reads modules.json, the modules' configs and the two sentence-transformers configs.

    A plain encoder without them is mean-pooled and normalised.

    Raises:
        InvalidModelError: the files ask for a module or a pooling that is not supported.
    """
    bert = read_json_object(folder / "sentence_bert_config.json")
    own = read_json_object(folder / "config_sentence_transformers.json")
    prompts = {str(name): str(text) for name, text in (own.get("prompts") or {}).items()}
    plain = Recipe(
        max_tokens=bert.get("max_seq_length"),
        lower_case=bool(bert.get("do_lower_case")),
        prompts=prompts,
        default_prompt=own.get("default_prompt_name") or "",
    )
    modules = read_json(folder / "modules.json")
    if modules is None:
        return plain
    kinds = _modules(modules)
    pooling = next((path for kind, path in kinds if kind == "Pooling"), None)
    config = {} if pooling is None else read_json_object(folder / pooling / "config.json")
    if config.get("include_prompt") is False and any(prompts.values()):
        raise InvalidModelError("a pooling that leaves out the prompt's tokens is not supported")
    return replace(
        plain,
        poolings=_poolings(config),
        dense=tuple(_dense(folder, path) for kind, path in kinds if kind == "Dense"),
        normalize=kinds[-1][0] == "Normalize",
    )


def max_tokens(recipe: Recipe, config_limit: int | None, tokenizer_limit: int) -> int:
    """Most tokens of one text: the recipe's limit, else that of the model and tokenizer."""
    context = config_limit or DEFAULT_MAX_TOKENS
    if recipe.max_tokens:
        return min(recipe.max_tokens, context)
    return min(context, tokenizer_limit if tokenizer_limit < _NO_LIMIT else context)


def _modules(modules: Any) -> list[tuple[str, str]]:
    """(kind, folder) of each module; the order must be a supported one."""
    try:
        kinds = [(str(m["type"]).rsplit(".", 1)[-1], str(m["path"])) for m in modules]
    except (TypeError, KeyError):
        raise InvalidModelError("modules.json is not a list of modules with types") from None
    names = [kind for kind, _ in kinds]
    try:
        for _, path in kinds:
            if path:  # the first module is the model's folder itself
                check_file_path(path)
    except InvalidPathError as error:
        raise InvalidModelError(f"modules.json is not valid: {error.message}") from None
    middle = names[2:-1] if names[-1:] == ["Normalize"] else names[2:]
    if names[:2] != ["Transformer", "Pooling"] or set(middle) - {"Dense"}:
        raise InvalidModelError(
            f"modules.json lists {', '.join(names)[:200]}; it must list Transformer, Pooling, "
            "any number of Dense, and Normalize or not, in this order"
        )
    return kinds


def _poolings(config: dict[str, Any]) -> tuple[str, ...]:
    wanted = {key for key, on in config.items() if key.startswith("pooling_mode_") and on is True}
    chosen = tuple(name for name, key in POOLINGS.items() if key in wanted)
    if not chosen or wanted - set(POOLINGS.values()):
        raise InvalidModelError(
            f"the pooling {', '.join(sorted(wanted))[:200] or 'none'} is not supported"
        )
    return chosen


def _dense(folder: Path, path: str) -> Dense:
    config = read_json_object(folder / path / "config.json")
    activation = str(config.get("activation_function", "")).rsplit(".", 1)[-1]
    if activation not in ACTIVATIONS:
        raise InvalidModelError(
            f"the activation {activation[:80]!r} of {path}/config.json is not supported; it must "
            f"be one of {', '.join(ACTIVATIONS)}"
        )
    return Dense(path, activation, bool(config.get("bias", True)))
