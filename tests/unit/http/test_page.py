"""The page: who gets it, what it may do, and that it knows the names of the protos."""

from __future__ import annotations

import re
from importlib import resources

import httpx
import pytest
from google.protobuf.descriptor import Descriptor

from http_svc.app import application
from http_svc.page import FILES
from http_svc.services import Services
from http_svc.settings import HttpSettings
from ml import common_pb2, mediapipe_pb2, model_management_pb2
from shared.pipelines import PIPELINES
from tests.unit.http.conftest import Door

HTML, CSS, JS = (
    (resources.files("http_svc") / "static" / f"page.{kind}").read_text()
    for kind in ("html", "css", "js")
)
PROTOS = (common_pb2, mediapipe_pb2, model_management_pb2)
STATES = [value.name for value in model_management_pb2.ModelState.DESCRIPTOR.values]
# Of OpenAI's interface.
OTHER_FIELDS = {
    *("stream_options", "include_usage", "max_tokens"),
    *("finish_reason", "completion_tokens"),
}


@pytest.mark.parametrize("path", FILES)
async def test_without_the_setting_there_is_no_page(door: Door, path: str) -> None:
    answer = await door.client.get(path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


async def test_the_page_may_use_its_own_files_alone() -> None:
    async with Services(HttpSettings(page=True)) as services:
        transport = httpx.ASGITransport(application(services))
        async with httpx.AsyncClient(transport=transport, base_url="http://door") as client:
            answers = [await client.get(path) for path in FILES]
    kinds = [answer.headers["content-type"] for answer in answers]
    assert kinds == [f"text/{kind}; charset=utf-8" for kind in ("html", "css", "javascript")]
    for answer in answers:
        policy = dict(
            part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; ")
        )
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert {policy[of] for of in ("script-src", "style-src", "connect-src")} == {"'self'"}
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"


def test_nothing_in_it_needs_more() -> None:
    linked = re.findall(r'(?:src|href)="(?!#|data:)([^"]*)"', HTML)
    assert sorted(linked) == ["/page.css", "/page.js"]
    assert not re.search(r'<style|\sstyle=|\son\w+="|<script(?! src)|https?://(?!www\.w3)', HTML)
    assert "url(" not in CSS
    assert "@import" not in CSS
    for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert sink not in JS
    assert not re.search(r"Storage|cookie|indexedDB", JS)


def fields(message: Descriptor) -> set[str]:
    inner = (fields(one) for one in message.nested_types)
    return {field.name for field in message.fields}.union(*inner)


def test_its_names_are_those_of_the_protos() -> None:
    """So that no field, call or state can be renamed without it."""
    code = "\n".join(line.split("// ")[0] for line in JS.splitlines())
    messages = [one for proto in PROTOS for one in proto.DESCRIPTOR.message_types_by_name.values()]
    known = set().union(*map(fields, messages))
    used = set(re.findall(r"\b[a-z0-9]+(?:_[a-z0-9]+)+\b", code))
    assert len(used & known) > 10
    assert used - known == OTHER_FIELDS
    calls = {
        f"{service.full_name}/{method.name}"
        for proto in PROTOS
        for service in proto.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    management = re.findall(r"\$\{MODEL_MGMT\}(\w+)", code)
    vision = re.findall(r'rpc: "(\w+)"', code)
    assert {f"ml.ModelManagementService/{name}" for name in management} <= calls
    assert {f"ml.MediapipeService/{name}" for name in vision} <= calls
    assert (len(set(management)), len(vision)) == (3, 4)
    states = {name.removeprefix("MODEL_STATE_") for name in STATES}
    compared = set(re.findall(r'state === "([A-Z]+)"', code))
    under_way = re.search(r"UNDER_WAY = \[(.*)\]", code)
    assert under_way
    assert compared | set(re.findall(r'"(\w+)"', under_way[1])) <= states


@pytest.mark.parametrize(
    ("name", "rpc"), [("CHAT_TYPES", "ChatCompletion"), ("EMBEDDING_TYPES", "GenerateEmbeddings")]
)
def test_it_offers_the_models_that_answer(name: str, rpc: str) -> None:
    listed = re.search(rf"const {name} = \[(.*)\]", JS)
    assert listed
    answering = [pipeline.name for pipeline in PIPELINES if rpc in pipeline.calls]
    assert sorted(re.findall(r'"([^"]+)"', listed[1])) == sorted(answering)


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.2)."""
    parts = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    linear = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(
    ("front", "back", "least"),
    [
        *(("text", back, 4.5) for back in ("back", "card", "field", "own")),
        *(("soft", back, 4.5) for back in ("card", "field")),
        *(("good", "card", 4.5), ("bad", "card", 4.5), ("bad", "bad-back", 4.5)),
        *(("on-accent", "accent", 4.5), ("accent", "card", 3), ("edge", "field", 3)),
    ],
)
def test_its_colours_can_be_told_apart(front: str, back: str, least: float, scheme: int) -> None:
    """By the contrast that WCAG 2.2 AA asks for: text 4.5, edges of fields and marks 3."""
    pairs = dict(re.findall(r"--([\w-]+): light-dark\((#\w{6}, #\w{6})\)", CSS))
    one, other = (luminance(pairs[name].split(", ")[scheme]) for name in (front, back))
    assert (max(one, other) + 0.05) / (min(one, other) + 0.05) >= least
