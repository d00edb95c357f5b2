"""Answers in the formats of public models: right ones, unusual ones and malformed ones.

Each has a format, the text, the content, and the calls with their arguments as text.
"""

from __future__ import annotations

from typing import NamedTuple

PARIS, ROME = '{"city": "Paris"}', '{"city": "Rome"}'
CALL = f'{{"name": "weather", "arguments": {PARIS}}}'
OTHER = f'{{"name": "weather", "arguments": {ROME}}}'


class Case(NamedTuple):
    """An answer and its parts."""

    format: str
    text: str
    content: str = ""
    calls: tuple[tuple[str, str], ...] = ()


ONE = (("weather", PARIS),)
TWO = (("weather", PARIS), ("weather", ROME))


def hermes(*calls: str) -> str:
    return "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)


def deepseek_v3(name: str, arguments: str) -> str:
    return (
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{arguments}\n```"
        "<｜tool▁call▁end｜>"
    )


def deepseek_v31(name: str, arguments: str) -> str:
    return f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{arguments}<｜tool▁call▁end｜>"


def deepseek(*calls: str) -> str:
    return f"<｜tool▁calls▁begin｜>{chr(10).join(calls)}<｜tool▁calls▁end｜>"


def qwen(name: str, *parameters: str) -> str:
    lines = [f"<tool_call>\n<function={name}>", *parameters, "</function>\n</tool_call>"]
    return "\n".join(lines)


def parameter(name: str, value: str) -> str:
    return f"<parameter={name}>\n{value}\n</parameter>"


TRICKY = r'{"city": "</tool_call> [ARGS] }{][ \"x\" \\", "a": [1, {"b": null}, "é\n"]}'

CASES = [
    Case("hermes", hermes(CALL), calls=ONE),
    Case("hermes", hermes(CALL, OTHER), calls=TWO),
    Case("hermes", "I look.\n" + hermes(CALL) + "\nDone.", "I look.\nDone.", ONE),
    Case("hermes", f"<tool_call>{CALL}{OTHER}</tool_call>", calls=TWO),
    Case("hermes", f"<tool_call>[{CALL}, {OTHER}]</tool_call>", calls=TWO),
    Case("hermes", f"<tool_call>\n{CALL}", calls=ONE),
    Case("hermes", f"<tool_call>\n{CALL}}}\n</tool_call>", calls=ONE),
    Case("hermes", '<tool_call>{"name": "time"}</tool_call>', calls=(("time", "{}"),)),
    Case(
        "hermes", '<tool_call>{"name":"time","arguments":null}</tool_call>', "", (("time", "{}"),)
    ),
    Case("hermes", hermes(f'{{"arguments": {PARIS}, "name": "weather"}}'), calls=ONE),
    Case("hermes", hermes(f'{{"name": "weather", "parameters": {PARIS}}}'), calls=ONE),
    Case("hermes", hermes(r'{"name": "weather", "arguments": "{\"city\": \"Paris\"}"}'), calls=ONE),
    Case(
        "hermes",
        hermes(f'{{"id": 1, "name": "weather", "arguments": {TRICKY}, "x": [{{}}]}}'),
        calls=(("weather", TRICKY),),
    ),
    Case(
        "hermes",
        hermes('{"name": "weather", "arguments": {"city": "Paris",}}'),
        calls=(("weather", '{"city": "Paris",}'),),
    ),
    Case("hermes", hermes('{"name": "none", "arguments": {}}'), "", (("none", "{}"),)),
    # Malformed: told as content.
    Case("hermes", "<tool_call>", "<tool_call>"),
    Case("hermes", "a <tool_call> b", "a <tool_call> b"),
    Case("hermes", "<tool_call>\n{}\n</tool_call>", "<tool_call>\n{}\n</tool_call>"),
    Case("hermes", '<tool_call>{"name": "we', '<tool_call>{"name": "we'),
    Case("hermes", '<tool_call>{"name": ""}</tool_call>', '<tool_call>{"name": ""}</tool_call>'),
    Case("hermes", '<tool_call>{"name": "a b"} x', '<tool_call>{"name": "a b"} x'),
    Case("hermes", "<tool_call>[1]</tool_call>", "<tool_call>[1]</tool_call>"),
    Case("hermes", "<tool_call>{name: x}<tool_call>", "<tool_call>{name: x}<tool_call>"),
    Case("hermes", "<tool_call>\n" + hermes(CALL), "<tool_call>\n", ONE),
    Case("hermes", '<tool_call>{"arguments": {]', '<tool_call>{"arguments": {]'),
    # Cut off, or broken after it has begun.
    Case("hermes", '<tool_call>{"name": "time", "arguments": {"a', "", (("time", '{"a'),)),
    Case("hermes", '<tool_call>{"name": "time", "arguments": {]}', "]}", (("time", "{"),)),
    Case("hermes", hermes(CALL) + '\n<tool_call>{"na', '<tool_call>{"na', ONE),
    # No calls.
    Case("hermes", "", ""),
    Case("hermes", "  \n ", "  \n "),
    Case("hermes", " a < b <tool> <tool_cal", " a < b <tool> <tool_cal"),
    Case("hermes", "\n" * 400 + "x", "\n" * 400 + "x"),
    #
    Case("llama3", f'{{"name": "weather", "parameters": {PARIS}}}', calls=ONE),
    Case("llama3", f'\n<|python_tag|>{{"name": "weather", "parameters": {PARIS}}}', calls=ONE),
    Case("llama3", f'{{"type": "function", "name": "weather", "parameters": {PARIS}}}', calls=ONE),
    Case("llama3", f"{CALL}; {OTHER}", calls=TWO),
    Case("llama3", f"{CALL}\n{OTHER}", calls=TWO),
    Case("llama3", f"<|python_tag|>{CALL}; <|python_tag|>{OTHER}", calls=TWO),
    Case("llama3", f"Well: <|python_tag|>{CALL}", "Well: ", ONE),
    Case("llama3", f"{CALL} That is all.", "That is all.", ONE),
    Case("llama3", '{"answer": 1}', '{"answer": 1}'),
    Case("llama3", ' {"name": "Paul", "age": 3}', ' {"name": "Paul", "age": 3}'),
    Case("llama3", '{"name": {"first": "Paul"}}', '{"name": {"first": "Paul"}}'),
    Case("llama3", "{", "{"),
    Case("llama3", f"Say {CALL}", f"Say {CALL}"),
    Case("llama3", '<|python_tag|>time.call(a="b")', '<|python_tag|>time.call(a="b")'),
    #
    Case("mistral", f"[TOOL_CALLS][{CALL}]", calls=ONE),
    Case("mistral", f'[TOOL_CALLS] [{CALL[:-1]}, "id": "abcdefghi"}}, {OTHER}]', calls=TWO),
    Case("mistral", f"[TOOL_CALLS]{CALL}", calls=ONE),
    Case("mistral", f"Sure.[TOOL_CALLS]weather[ARGS]{PARIS}", "Sure.", ONE),
    Case("mistral", f"[TOOL_CALLS]weather{PARIS}[TOOL_CALLS]weather{ROME}", calls=TWO),
    Case("mistral", f"[TOOL_CALLS]weather[CALL_ID]abcdefghi[ARGS]{PARIS}", calls=ONE),
    Case("mistral", "[TOOL_CALLS]", "[TOOL_CALLS]"),
    Case("mistral", "[TOOL_CALLS]weather", "[TOOL_CALLS]weather"),
    Case("mistral", "[TOOL_CALLS] please [TOOL", "[TOOL_CALLS] please [TOOL"),
    Case("mistral", "[TOOL_CALLS]time[ARGS]{", "", (("time", "{"),)),
    Case("mistral", "[TOOL_CALLS][]", "[TOOL_CALLS][]"),
    #
    Case("phi4", f"<|tool_call|>[{CALL}]<|/tool_call|>", calls=ONE),
    Case("phi4", f"<|tool_call|>{CALL}<|/tool_call|>\n<|tool_call|>{OTHER}<|/tool_call|>", "", TWO),
    Case("phi4", f"functools[{CALL}, {OTHER}]", calls=TWO),
    Case("phi4", f"<|tool_call|>[{CALL}]", calls=ONE),
    Case("phi4", "Use functools[0].", "Use functools[0]."),
    Case("phi4", "from functools", "from functools"),
    Case("phi4", "<|tool_call|>[]<|/tool_call|>", "<|tool_call|>[]<|/tool_call|>"),
    #
    Case("deepseek", deepseek(deepseek_v3("weather", PARIS)), calls=ONE),
    Case(
        "deepseek",
        deepseek(deepseek_v3("weather", PARIS), deepseek_v3("weather", ROME)),
        calls=TWO,
    ),
    Case("deepseek", "So.\n" + deepseek(deepseek_v31("weather", PARIS)), "So.\n", ONE),
    Case(
        "deepseek",
        deepseek(deepseek_v31("weather", PARIS) + deepseek_v31("weather", ROME)),
        calls=TWO,
    ),
    Case(
        "deepseek",
        deepseek(deepseek_v31("weather", '{"code": "```json\\n{}\\n```"}')),
        calls=(("weather", '{"code": "```json\\n{}\\n```"}'),),
    ),
    Case("deepseek", deepseek(), deepseek()),
    Case("deepseek", deepseek(deepseek_v31("", "{}")), deepseek(deepseek_v31("", "{}"))),
    Case("deepseek", deepseek_v3("time", "none"), deepseek_v3("time", "none")),
    Case("deepseek", "<｜tool▁calls", "<｜tool▁calls"),
    #
    Case("gemma4", '<|tool_call>call:weather{city:<|"|>Paris<|"|>}<tool_call|>', calls=ONE),
    Case(
        "gemma4",
        'Ok<|tool_call>call:weather{city:<|"|>Paris<|"|>}<tool_call|>'
        '<|tool_call>call:weather{city:<|"|>Rome<|"|>}<tool_call|>',
        "Ok",
        TWO,
    ),
    Case(
        "gemma4",
        '<|tool_call>call:time{a:1,b:[true,null,-1.5],c:{<|"|>d<|"|>:<|"|>"\n{}<|"|>},"e":"f",'
        "g:x y}"
        "<tool_call|>",
        calls=(
            (
                "time",
                '{"a": 1, "b": [true, null, -1.5], "c": {"d": "\\"\\n{}"}, "e": "f", "g": "x y"}',
            ),
        ),
    ),
    Case("gemma4", "<|tool_call>call:time{}<tool_call|>", calls=(("time", "{}"),)),
    Case("gemma4", "<|tool_call>call:time{a:", "", (("time", '{"a": '),)),
    Case("gemma4", "<|tool_call>call:{}<tool_call|>", "<|tool_call>call:{}<tool_call|>"),
    Case("gemma4", "<|tool_call>time<tool_call|>", "<|tool_call>time<tool_call|>"),
    Case(
        "gemma4", "<|tool_call>call:time{a:" + "[" * 99, "[" * 68, (("time", '{"a": ' + "[" * 31),)
    ),
    Case(
        "functiongemma",
        "<start_function_call>call:weather{city:<escape>Paris<escape>}<end_function_call>",
        calls=ONE,
    ),
    #
    Case("qwen3-coder", qwen("weather", parameter("city", "Paris")), calls=ONE),
    Case(
        "qwen3-coder",
        qwen("weather", parameter("city", "Paris"))
        + "\n"
        + qwen("weather", parameter("city", "Rome")),
        calls=TWO,
    ),
    Case(
        "qwen3-coder",
        qwen(
            "weather",
            parameter("city", "1"),
            parameter("days", "2"),
            parameter("code", 'if a < b:\n\n  "x"\n'),
            parameter("unit", "C"),
            parameter("other", '[1, "a"]'),
            parameter("more", "True"),
            parameter("rest", "not JSON"),
        ),
        calls=(
            (
                "weather",
                (
                    '{"city": "1", "days": 2, "code": "if a < b:\\n\\n  \\"x\\"\\n", "unit": "C", '
                    '"other": [1, "a"], "more": true, "rest": "not JSON"}'
                ),
            ),
        ),
    ),
    Case("qwen3-coder", qwen("time"), calls=(("time", "{}"),)),
    Case("qwen3-coder", "<function=time></function>", calls=(("time", "{}"),)),
    Case("qwen3-coder", "<tool_call>\n<function=", "<tool_call>\n<function="),
    Case("qwen3-coder", "<tool_call>x", "<tool_call>x"),
    Case("qwen3-coder", "<function=time><parameter=a>1", "", (("time", '{"a": '),)),
    #
    Case(
        "glm4",
        "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>",
        calls=ONE,
    ),
    Case("glm4", "<tool_call>time</tool_call>", calls=(("time", "{}"),)),
    Case(
        "glm4",
        "<tool_call>weather<arg_key>days</arg_key><arg_value>3</arg_value></tool_call>",
        calls=(("weather", '{"days": 3}'),),
    ),
    Case("glm4", "<tool_call>no name</tool_call>", "<tool_call>no name</tool_call>"),
]
