"""Figures of answers, by model."""

from prometheus_client import REGISTRY

from ml import transformers_pb2 as pb
from ml.internal.link_pb2 import Usage
from shared.model_ids import ModelId, parse_model_id
from text_svc.metrics import FIRST_TOKEN_SECONDS, observe

MODEL = "metrics/of-answers"


def test_a_model_has_one_label_however_callers_write_it() -> None:
    usage = pb.GenerationUsage(prompt_tokens=3, generated_tokens=5, first_token_seconds=0.0015)
    for name in (MODEL, f"models/{MODEL}", f"{MODEL}/model.safetensors"):
        observe(parse_model_id(name), Usage(generation=usage))
    labels = {"model": MODEL}
    assert REGISTRY.get_sample_value("text_generated_tokens_total", labels) == 15
    models = {
        sample.labels["model"]
        for metric in FIRST_TOKEN_SECONDS.collect()
        for sample in metric.samples
        if "of-answers" in sample.labels["model"]
    }
    assert models == {MODEL}


def test_times_are_told_apart_from_a_millisecond_to_a_minute() -> None:
    usage = pb.GenerationUsage(first_token_seconds=0.002, queue_seconds=59)
    observe(ModelId(MODEL), Usage(generation=usage))
    bounds = sorted(
        float(sample.labels["le"])
        for metric in FIRST_TOKEN_SECONDS.collect()
        for sample in metric.samples
        if sample.name.endswith("_bucket") and sample.labels["model"] == MODEL
    )
    assert (bounds[0], bounds[-2]) == (0.001, 60.0)
