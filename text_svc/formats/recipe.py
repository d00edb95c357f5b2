"""How a text becomes a vector, as a model's sentence-transformers files specify it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from shared.errors import InvalidModelError
from shared.files.modules import MODULES, STATIC, TRANSFORMER, Module, parse_modules
from shared.files.snapshot import SENTENCE_CONFIGS, SENTENCE_TRANSFORMERS
from text_svc.formats.json_files import read_json, read_json_object

# If no file specifies how long a text may be.
DEFAULT_MAX_TOKENS = 512
# A tokenizer without a limit of its own says int(1e30).
NO_LIMIT = 1 << 20

# In the order in which sentence-transformers joins them when a model has several.
POOLINGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len": "pooling_mode_mean_sqrt_len_tokens",
    "weighted_mean": "pooling_mode_weightedmean_tokens",
    "last": "pooling_mode_lasttoken",
}
# Their names since sentence-transformers 5.4, where one key lists them: "pooling_mode".
_NEW_NAMES = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weighted_mean",
    "lasttoken": "last",
}
# Activations of Dense modules, by the last part of their class's name.
ACTIVATIONS = (
    *("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid", "ELU", "LeakyReLU", "Mish", "ReLU6"),
    *("Softplus", "Softsign", "Hardtanh"),
)
# What a Transformer module's configuration may pass on without changing a vector.
_HARMLESS = {
    *("trust_remote_code", "torch_dtype", "dtype", "attn_implementation", "use_safetensors"),
    *("low_cpu_mem_usage", "add_pooling_layer", "use_fast", "use_cache", "unpad_inputs"),
}
# Modules of sentence-transformers that this service does not have, and why.
_OTHERS = {
    **dict.fromkeys(
        ("MLMTransformer", "SpladePooling", "SparseAutoEncoder", "SparseStaticEmbedding", "CSR"),
        "it makes sparse vectors, which are not supported",
    ),
    "CLIPModel": "it reads pictures too; load it with the pipeline type clip",
    "Router": "it has a model for each kind of text, which is not supported",
    "Asym": "it has a model for each kind of text, which is not supported",
    "MultiVectorMask": "it makes a vector for each token, which is not supported",
    "LogitScore": "it scores pairs of texts and makes no vectors",
}
_MODEL_TYPES = {
    "SparseEncoder": "a sparse encoder, whose vectors are not supported",
    "CrossEncoder": "a cross-encoder, which scores pairs; load it with the pipeline type reranking",
    "MultiVectorEncoder": "a model with a vector for each token, which is not supported",
}


@dataclass(frozen=True)
class Dense:
    """A linear layer: its folder in the model's, and its activation.

    Attributes:
        residual: whether its input is added to what it gives.
    """

    folder: str
    activation: str
    bias: bool
    residual: bool = False


@dataclass(frozen=True)
class LayerNorm:
    """A normalisation with learned weights: its folder in the model's."""

    folder: str


@dataclass(frozen=True)
class Normalize:
    """Makes the length of a vector 1."""


Layer = Dense | LayerNorm | Normalize


@dataclass(frozen=True)
class LayerMean:
    """A weighted mean of the transformer's layers, from `first` on: its folder in the model's."""

    folder: str
    first: int


@dataclass(frozen=True)
class Recipe:
    """The steps from a text to a sentence vector.

    Attributes:
        folder: of the transformer or table, in the model's; "" is the model's own.
        static: whether a table gives the vectors of tokens, without a transformer.
        layer_mean: what is pooled instead of the last layer.
        poolings: keys of `POOLINGS`; the vectors of several are joined.
        include_prompt: whether the tokens of a prompt are pooled too.
        layers: what follows the pooling.
        dimensions: how many numbers of a vector are kept, if not all.
        max_tokens: tokens of a text at most, if the files say so.
        lower_case: whether texts are lower-cased before the tokenizer sees them.
        prompts: texts that are put before an input, by name ("query", "document").
        default_prompt: the name of the one used when a caller names none; "" is none.
    """

    folder: str = ""
    static: bool = False
    layer_mean: LayerMean | None = None
    poolings: tuple[str, ...] = ("mean",)
    include_prompt: bool = True
    layers: tuple[Layer, ...] = (Normalize(),)
    dimensions: int | None = None
    max_tokens: int | None = None
    lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str = ""

    @property
    def normalize(self) -> bool:
        """Whether vectors have length 1."""
        return self.layers[-1:] == (Normalize(),)

    @property
    def hides(self) -> bool:
        """Whether a text may have tokens that are read and not pooled, see `SentenceEncoder`."""
        return self.static or not self.include_prompt


def model_folder(folder: Path) -> Path:
    """Where the model of transformers is: `folder`, or that of the first of its modules.

    Raises:
        InvalidModelError: modules.json is not valid.
    """
    content = read_json(folder / MODULES)
    modules = () if content is None else parse_modules(content)
    return folder / modules[0].folder if modules else folder


def read_recipe(folder: Path) -> Recipe:
    """Reads modules.json, the modules' configs and the two sentence-transformers configs.

    A plain encoder without them is mean-pooled and normalised.

    Raises:
        InvalidModelError: the files ask for a module or a pooling that is not supported.
    """
    own = read_json_object(folder / SENTENCE_TRANSFORMERS)
    if why := _MODEL_TYPES.get(str(own.get("model_type"))):
        raise InvalidModelError(f"{SENTENCE_TRANSFORMERS} says that the model is {why}")
    plain = Recipe(
        prompts=_prompts(own),
        default_prompt=str(own.get("default_prompt_name") or ""),
        dimensions=_positive(own, "truncate_dim", SENTENCE_TRANSFORMERS),
    )
    if plain.default_prompt and plain.default_prompt not in plain.prompts:
        raise InvalidModelError(
            f"{SENTENCE_TRANSFORMERS} names the prompt {plain.default_prompt[:80]!r} as its "
            "default, and has none of this name"
        )
    content = read_json(folder / MODULES)
    if content is None:
        return _of_transformer(plain, folder)
    first, *others = _supported(parse_modules(content))
    plain = replace(plain, folder=first.folder)
    if first.kind == STATIC:
        return replace(plain, static=True, layers=_layers(folder, others))
    layer_mean = None
    if others[0].kind == "WeightedLayerPooling":
        layer_mean = _layer_mean(folder, others.pop(0).folder)
    pooling = _config(folder, others.pop(0).folder)
    return replace(
        _of_transformer(plain, folder / first.folder),
        layer_mean=layer_mean,
        poolings=_poolings(pooling),
        include_prompt=pooling.get("include_prompt") is not False,
        layers=_layers(folder, others),
    )


def max_tokens(recipe: Recipe, config_limit: int | None, tokenizer_limit: int) -> int:
    """Most tokens of one text: the recipe's or the tokenizer's limit, and what the model holds."""
    own = recipe.max_tokens or (tokenizer_limit if tokenizer_limit < NO_LIMIT else None)
    if recipe.static:
        return own or NO_LIMIT
    return min((limit for limit in (own, config_limit) if limit), default=DEFAULT_MAX_TOKENS)


def _prompts(own: Mapping[str, Any]) -> dict[str, str]:
    prompts = own.get("prompts") or {}
    if not isinstance(prompts, dict):
        raise InvalidModelError(f"the prompts of {SENTENCE_TRANSFORMERS} are not a JSON object")
    texts = {str(name): "" if text is None else text for name, text in prompts.items()}
    if wrong := [name for name, text in texts.items() if not isinstance(text, str)]:
        raise InvalidModelError(
            f"prompt {wrong[0][:80]!r} of {SENTENCE_TRANSFORMERS} is not a text"
        )
    return texts


def _positive(config: Mapping[str, Any], key: str, file: str) -> int | None:
    number = config.get(key)
    if number is not None and (type(number) is not int or number < 1):
        raise InvalidModelError(f"{key} of {file} is not a number from 1 up")
    return number


def _supported(modules: tuple[Module, ...]) -> tuple[Module, ...]:
    """The modules that do something; their order must be a supported one."""
    for module in modules:
        if not module.kind:
            raise InvalidModelError(
                f"{MODULES} lists {module.type[:80]!r}, which is code of the model's own: it is "
                "not run"
            )
        if why := _OTHERS.get(module.kind):
            raise InvalidModelError(f"{MODULES} lists {module.kind}: {why}")
    used = tuple(module for module in modules if module.kind != "Dropout")
    names = [module.kind for module in used]
    after = names[1:]
    if names[:1] == [TRANSFORMER]:
        after = after[1:] if after[:1] == ["WeightedLayerPooling"] else after
        right = after[:1] == ["Pooling"]
        after = after[1:]
    else:
        right = names[:1] == [STATIC]
    if not right or set(after) - {"Dense", "LayerNorm", "Normalize"}:
        raise InvalidModelError(
            f"{MODULES} lists {', '.join(names)[:200]}; it must list Transformer, Pooling, or "
            "WeightedLayerPooling and Pooling, or StaticEmbedding alone, and then any number of "
            "Dense, LayerNorm, Dropout and Normalize"
        )
    return used


def _of_transformer(recipe: Recipe, folder: Path) -> Recipe:
    """What the configuration of a Transformer module says; `folder` is that of the transformer."""
    contents = {name: read_json_object(folder / name) for name in SENTENCE_CONFIGS}
    file, config = next((each for each in contents.items() if each[1]), (SENTENCE_CONFIGS[0], {}))
    task = config.get("transformer_task", "feature-extraction")
    output = config.get("module_output_name", "token_embeddings")
    if (task, output) != ("feature-extraction", "token_embeddings"):
        raise InvalidModelError(
            f"the transformer makes {str(output)[:80]} for {str(task)[:80]}; it must make "
            "token_embeddings for feature-extraction"
        )
    text = {"method": "forward", "method_output_name": "last_hidden_state"}
    modalities = config.get("modality_config") or {"text": text}
    if not isinstance(modalities, dict) or modalities.get("text") != text:
        raise InvalidModelError(
            "the transformer's modality_config must read text by forward and last_hidden_state"
        )
    for name in ("model_args", "tokenizer_args", "config_args", "processing_kwargs"):
        _check_harmless(name, config.get(name))
    return replace(
        recipe,
        max_tokens=_positive(config, "max_seq_length", file),
        lower_case=bool(config.get("do_lower_case")),
    )


def _check_harmless(name: str, value: Any) -> None:
    keys: Iterable[Any] = value if isinstance(value, dict) else ()
    if unknown := sorted(str(key) for key in keys if key not in _HARMLESS and value[key]):
        raise InvalidModelError(
            f"the transformer's configuration has {name} with {', '.join(unknown)[:200]}, which "
            "is not supported"
        )


def _config(folder: Path, module: str) -> dict[str, Any]:
    """The config.json of a module that must have one."""
    path = folder / module / "config.json"
    if not path.exists():
        raise InvalidModelError(f"{MODULES} lists {module[:80]!r}, which has no config.json")
    return read_json_object(path)


def _poolings(config: dict[str, Any]) -> tuple[str, ...]:
    if "pooling_mode" in config:
        mode = config["pooling_mode"]
        named = [str(each) for each in (mode if isinstance(mode, list) else [mode])]
        if not named or not set(named) <= _NEW_NAMES.keys():
            raise InvalidModelError(f"the pooling {', '.join(named)[:200]} is not supported")
        return tuple(_NEW_NAMES[each] for each in named)
    keys = {key: on for key, on in config.items() if key.startswith("pooling_mode_")}
    wanted = {key for key, on in keys.items() if on is True}
    chosen = tuple(name for name, key in POOLINGS.items() if key in wanted)
    if not keys:
        return Recipe.poolings
    if not chosen or wanted - set(POOLINGS.values()):
        raise InvalidModelError(
            f"the pooling {', '.join(sorted(wanted))[:200] or 'none'} is not supported"
        )
    return chosen


def _layer_mean(folder: Path, path: str) -> LayerMean:
    config = _config(folder, path)
    first = config.get("layer_start", 4)
    if type(first) is not int or not 0 <= first <= 1000:
        raise InvalidModelError(f"layer_start of {path}/config.json is no number of a layer")
    return LayerMean(path, first)


def _layers(folder: Path, modules: Iterable[Module]) -> tuple[Layer, ...]:
    made: list[Layer] = []
    for module in modules:
        match module.kind:
            case "Dense":
                made.append(_dense(folder, module.folder))
            case "LayerNorm":
                made.append(LayerNorm(module.folder))
            case "Normalize":
                made.append(Normalize())
    return tuple(made)


def _dense(folder: Path, path: str) -> Dense:
    config = _config(folder, path)
    # sentence-transformers' own default.
    name = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    activation = name.rsplit(".", 1)[-1]
    if activation not in ACTIVATIONS or not name.startswith("torch.nn."):
        raise InvalidModelError(
            f"the activation {name[:80]!r} of {path}/config.json is not supported; it must be one "
            f"of {', '.join(ACTIVATIONS)} of torch.nn"
        )
    places = {config.get(key) for key in ("module_input_name", "module_output_name")}
    if places - {None, "sentence_embedding"}:
        raise InvalidModelError(
            f"{path}/config.json puts a Dense layer on {', '.join(map(str, places))[:200]}; it "
            "must be on sentence_embedding"
        )
    return Dense(
        path, activation, bool(config.get("bias", True)), config.get("use_residual") is True
    )
