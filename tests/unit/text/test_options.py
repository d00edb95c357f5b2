import pytest

from shared.errors import InvalidArgumentError, UnknownOptionError
from shared.pipelines import TEXT_GENERATION, find_pipeline
from text_svc.models import engine_choice
from text_svc.models.engine_choice import wanted_engine
from text_svc.options import LoadOptions, parse_options


def test_every_value_comes_as_text() -> None:
    options = parse_options(
        {"engine": "openvino", "dtype": "int8", "max_length": "128", "cache_size_mb": "64"}
    )
    assert options == LoadOptions(engine="openvino", dtype="int8", max_length=128, cache_size_mb=64)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("engine", "llama.cpp"),
        ("dtype", "int3"),
        ("device", "tpu"),
        ("max_length", "0"),
        ("max_length", "many"),
        ("cache_size_mb", "-1"),
        ("max_sequences", "257"),
        ("temperature", "-0.1"),
        ("temperature", "nan"),
        ("temperature", "greedy"),
        ("trust_remote_code", "true"),
    ],
)
def test_an_option_that_does_not_fit_is_refused_with_what_is_accepted(
    name: str, value: str
) -> None:
    with pytest.raises(UnknownOptionError, match="accepted options are engine, dtype") as caught:
        parse_options({name: value})
    assert caught.value.field == f"options[{name}]"


@pytest.fixture(params=[False, True], ids=["cpu", "cuda"])
def cuda(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(engine_choice, "has_cuda", lambda: request.param)
    return bool(request.param)


def test_auto_is_openvino_unless_there_is_cuda(cuda: bool) -> None:
    assert wanted_engine(TEXT_GENERATION, LoadOptions()) == ("transformers" if cuda else "openvino")
    assert wanted_engine(TEXT_GENERATION, LoadOptions(device="cpu")) == "openvino"
    assert wanted_engine(TEXT_GENERATION, LoadOptions(device="cuda:0")) == "transformers"


def test_the_engine_can_be_named(cuda: bool) -> None:
    options = LoadOptions(engine="transformers")
    assert wanted_engine(TEXT_GENERATION, options) == "transformers"
    options = LoadOptions(engine="openvino", device="cpu")
    assert wanted_engine(TEXT_GENERATION, options) == "openvino"


@pytest.mark.parametrize(
    "options",
    [
        LoadOptions(engine="openvino", device="cuda"),
        LoadOptions(engine="openvino", dtype="float16"),
        LoadOptions(engine="transformers", dtype="int8"),
        LoadOptions(dtype="int8", device="cuda"),
    ],
    ids=str,
)
def test_options_that_contradict_each_other_are_refused(options: LoadOptions) -> None:
    with pytest.raises(InvalidArgumentError):
        wanted_engine(TEXT_GENERATION, options)


def test_float16_is_for_transformers() -> None:
    options = LoadOptions(dtype="float16", device="cpu")
    assert wanted_engine(TEXT_GENERATION, options) == "transformers"


@pytest.mark.parametrize(
    ("pipeline", "options"),
    [
        ("whisper", LoadOptions(max_length=10)),
        ("tokenizer", LoadOptions(max_length=10)),
        ("embeddings", LoadOptions(max_sequences=4)),
        ("reranking", LoadOptions(max_sequences=4)),
        ("visual-language", LoadOptions(cache_size_mb=4)),
    ],
)
def test_an_option_without_effect_is_refused(pipeline: str, options: LoadOptions) -> None:
    with pytest.raises(InvalidArgumentError, match="has no effect on"):
        wanted_engine(find_pipeline(pipeline), options)


@pytest.mark.parametrize("pipeline", ["chat", "embeddings", "reranking", "clip", "translation"])
def test_models_that_read_take_a_length(pipeline: str) -> None:
    assert wanted_engine(find_pipeline(pipeline), LoadOptions(max_length=10, device="cpu"))


@pytest.mark.parametrize(
    ("pipeline", "options"),
    [
        ("tflite", {}),
        ("litert", {"file": "a/b.tflite", "threads": "2", "max_sequences": "4"}),
        ("chat", {"file": "model.litertlm", "temperature": "0", "max_length": "100"}),
        ("chat", {"engine": "litert", "device": "cpu"}),
    ],
)
def test_litert_runs_its_own_files(pipeline: str, options: dict[str, str], cuda: bool) -> None:
    del cuda  # the same on both
    kind, parsed = find_pipeline(pipeline), parse_options(options)
    assert wanted_engine(kind, parsed) == "litert"
    told = engine_choice.effective_options(kind, parsed)
    assert told["engine"] == "litert"
    assert not told.keys() & {"dtype", "device"}


@pytest.mark.parametrize(
    ("pipeline", "options", "message"),
    [
        ("litert", {"engine": "openvino"}, "openvino does not read .tflite files"),
        ("litert", {"file": "model.onnx"}, "option file is 'model.onnx'; for litert models"),
        ("litert", {"dtype": "int8"}, "option dtype has no effect on .tflite files"),
        ("litert", {"device": "cuda"}, "option device has no effect on .tflite files, which run"),
        ("litert", {"max_length": "5"}, "option max_length has no effect on litert models"),
        ("chat", {"file": "x.litertlm", "max_sequences": "2"}, "generates one text at a time"),
        (
            "chat",
            {"file": "x.litertlm", "cache_size_mb": "9"},
            "cache_size_mb has no effect",
        ),
        ("chat", {"file": "x.litertlm", "engine": "transformers"}, "does not read .litertlm files"),
        ("reranking", {"engine": "litert"}, "litert does not support reranking models"),
    ],
)
def test_what_litert_cannot_do_is_refused(
    pipeline: str, options: dict[str, str], message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        wanted_engine(find_pipeline(pipeline), parse_options(options))
