import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.errors import FailedPreconditionError, InvalidArgumentError, InvalidModelError
from tests.support.waiting import until
from text_svc.worker.generation import chat_template
from text_svc.worker.generation.chat_template import ChatTemplate

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Grüße, 雪 \x00 <b>&'\""},
    {"role": "assistant", "content": "  ok\n"},
    {"role": "user", "content": ""},
]
MAX_CHARACTERS = 100_000

# What templates of public models use.
HARMLESS = {
    "loop": "{% for m in messages %}{{ m['role'] }}: {{ m.content | trim }}\n{% endfor %}",
    "blocks": "{% if messages %}\n  {%- set x = 1 %}\n    {{ x }}\n{% endif %}\n",
    "tokens": "{{ bos_token }}{{ messages[1].content }}{{ eos_token }}",
    "prompt": "{% if add_generation_prompt %}<go>{% endif %}",
    "tojson": "{{ messages | tojson }} {{ messages | tojson(indent=2) }}",
    "loopcontrols": "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}."
    "{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% endfor %}",
    "namespace": "{% set n = namespace(a=0) %}{% for m in messages %}{% set n.a = n.a + 1 %}"
    "{% endfor %}{{ n.a }}",
    "undefined": "{% if tools is defined and tools %}t{% endif %}{{ documents is none }}",
}
# Each with what its error says.
HOSTILE = {
    "{% for i in range(3000) %}{% for j in range(99999) %}{% endfor %}{% endfor %}": "longer than",
    "{% for i in range(99999) %}{{ 'x' * 99 }}{% endfor %}": "characters",
    "{{ ('a' * 20000000000) | length }}": "memory",
    "{{ '%2000000000d' % 1 }}": "memory",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "recursion",
    "{% for i in range(100000000) %}{% endfor %}": "Range too big",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}": "unsafe",
    "{{ cycler.__init__.__globals__.os.system('touch pwned') }}": "unsafe",
    "{{ messages.append(1) }}": "unsafe",
    "{% if %}": "Expected an expression",
    "{{ a.b.c }}": "undefined",
    "{{ raise_exception('roles must alternate') }}": "roles must alternate",
    "{{ '\\ud800' }}": "surrogates",
    "{% include '/etc/passwd' %}": "no loader",
}

Make = Callable[..., ChatTemplate]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    made: list[ChatTemplate] = []

    def make_template(source: str | None, **variables: str) -> ChatTemplate:
        made.append(ChatTemplate(source, variables, MAX_CHARACTERS))
        return made[-1]

    yield make_template
    for each in made:
        await each.close()


@pytest.fixture(autouse=True)
def nothing_was_run() -> Iterator[None]:
    yield
    assert not Path("pwned").exists()


@pytest.mark.parametrize("source", HARMLESS.values(), ids=HARMLESS)
async def test_renders_as_transformers_does(source: str, make: Make, llama: Path) -> None:
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(llama)
    expected = reference.apply_chat_template(
        MESSAGES, chat_template=source, tokenize=False, add_generation_prompt=True
    )
    chat = make(source, bos_token="<s>", eos_token="</s>")
    assert await chat.render(MESSAGES) == expected


@pytest.mark.parametrize(("source", "said"), HOSTILE.items())
async def test_a_hostile_template_is_refused_and_ends(
    source: str, said: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_template, "RENDER_SECONDS", 0.5 if said == "longer than" else 20.0)
    chat = make(source)
    with pytest.raises(InvalidArgumentError, match=said):
        await chat.render(MESSAGES)


async def test_serves_on_after_a_template_was_stopped(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = "{% for i in range(9999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    chat = make(f"{{% if messages[0].content == 'loop' %}}{loop}{{% endif %}}done")
    assert await chat.render(MESSAGES) == "done"
    monkeypatch.setattr(chat_template, "RENDER_SECONDS", 0.5)
    with pytest.raises(InvalidArgumentError, match="longer than"):
        await chat.render([{"role": "user", "content": "loop"}])
    monkeypatch.undo()
    assert await chat.render(MESSAGES) == "done"


async def test_a_caller_that_goes_away_leaves_the_next_one_its_own_answer(make: Make) -> None:
    chat = make("{{ messages[0].content }}")
    calls: list[Any] = [
        asyncio.ensure_future(chat.render([{"role": "user", "content": str(index)}]))
        for index in range(20)
    ]
    await asyncio.sleep(0.001)
    for call in calls[::2]:
        call.cancel()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert answers[1::2] == [str(index) for index in range(1, 20, 2)]


async def test_a_caller_that_goes_away_while_it_waits_costs_no_rendering(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, asked, ask = asyncio.Event(), [], ChatTemplate._ask

    async def held(chat: ChatTemplate, request: dict[str, Any]) -> dict[str, str]:
        asked.append(request["messages"][0]["content"])
        await gate.wait()
        return await ask(chat, request)

    monkeypatch.setattr(ChatTemplate, "_ask", held)
    chat = make("{{ messages[0].content }}")
    first, *others = (
        asyncio.ensure_future(chat.render([{"role": "user", "content": name}]))
        for name in ("first", "gone", "gone", "last")
    )
    await until(lambda: bool(asked))
    for gone in others[:2]:
        gone.cancel()
    await asyncio.wait(others[:2])
    gate.set()
    assert await asyncio.gather(first, others[2]) == ["first", "last"]
    assert asked == ["first", "last"]


async def test_a_model_without_a_template_says_so(make: Make) -> None:
    with pytest.raises(FailedPreconditionError, match="GenerateText"):
        await make(None).render(MESSAGES)


async def test_texts_come_in_the_form_that_the_template_wants(make: Make) -> None:
    parts = (
        "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}"
    )
    question = [{"role": "user", "content": "what?"}]
    chat = make(parts)
    chat.check()
    assert await chat.render_texts(question) == "what?"
    first_alone = make("{{ messages[0].content }}")
    first_alone.check()
    with pytest.raises(InvalidArgumentError, match=r"leaves out messages\[1\]\.content") as caught:
        await first_alone.render_texts(question * 2)
    assert caught.value.field == "messages[1].content"


def test_a_template_without_the_user_s_text_is_refused_at_load(make: Make) -> None:
    with pytest.raises(InvalidModelError, match="leaves out what a user says"):
        make("You are helpful.").check()
    for unknown in ("{% if %}", "{{ raise_exception('no') }}", None):
        make(unknown).check()  # calls will show whether it works
