"""Which parsers a chat template asks for. The templates here are shorter than those of the families that they stand for,
and have what sets them apart."""

from __future__ import annotations

import pytest

from workers.front.tools.registry import REASONING_PARSERS, TOOL_PARSERS, reasoning_style, tool_parser

TOOLS = "{%- if tools %}{{ tools | tojson }}"

TOOL_TEMPLATES = {
    "qwen2.5, qwen3, hermes": (
        TOOLS + '<tool_call>\\n{"name": <function-name>, "arguments": {}}\\n</tool_call>',
        "hermes",
    ),
    "qwen3-coder": (TOOLS + "<tool_call>\\n<function=f>\\n<parameter=p>\\n1\\n</parameter>", "qwen3"),
    "llama 3.1, 3.2": (TOOLS + """{{- 'As {"name": function name, "parameters": dictionary}.' }}""", "llama3_json"),
    "the same, quoted": (
        TOOLS + r"""{{- "As {\"name\": function name, \"parameters\": dictionary}." }}""",
        "llama3_json",
    ),
    "llama 4": (
        TOOLS + """{"name": function name, "parameters": dictionary}{{- '<|python_start|>' }}""",
        "llama3_json",
    ),
    "llama 4, told otherwise": (TOOLS + "exactly [func_name1(param1=value1), func_name2(...)]", "pythonic"),
    "mistral": (TOOLS + '{%- if not tools %}[AVAILABLE_TOOLS]{% endif %}{{- "[TOOL_CALLS][" }}', "mistral"),
    "glm 4.5": (TOOLS + "<tool_call>{function-name}\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>", None),
    "seed": (TOOLS + "<seed:tool_call>\n<function=f>\n<parameter=p>1</parameter>", None),
    "functionary": (TOOLS + """'<function=' + name + '>' + arguments + '</function>'""", None),
    "command r7b": (TOOLS + '<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "f", "parameters": {}}]', None),
    "granite": (TOOLS + """{{- ', "parameters": ' }}<function_call> {"name": "f", "arguments": {}}""", None),
    "phi 4": (TOOLS + '<|tool_call|>{"name": "f", "arguments": {}}<|/tool_call|>', None),
    "deepseek r1": ("{%- for tool in message['tool_calls'] %}<｜tool▁calls▁begin｜>", None),
    "no tools": ("{{ messages[0].content }}<tool_call>", None),
}

THINKS = {
    "qwen3": ("{%- if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}", "qwen3"),
    "qwq": ("<|im_start|>assistant\n<think>\n", "qwen3"),
    "deepseek r1": ("{{ content.split('</think>')[-1] }}{{ '<｜Assistant｜>' }}", "deepseek"),
    "deepseek v3.1": ("<｜Assistant｜>{%- if not thinking %}</think>{% else %}<think>{% endif %}", "qwen3"),
    "deepseek v3": ("{{ '<｜Assistant｜>' }}", None),
    "llama": ("<|start_header_id|>assistant<|end_header_id|>", None),
    "seed": ("<seed:think>{{ reasoning }}</seed:think>", None),
}


@pytest.mark.parametrize("family", TOOL_TEMPLATES)
def test_the_tool_parser_of_a_template(family: str) -> None:
    template, expected = TOOL_TEMPLATES[family]
    assert tool_parser("auto", template) is (None if expected is None else TOOL_PARSERS[expected])


@pytest.mark.parametrize("family", THINKS)
def test_the_reasoning_parser_of_a_template(family: str) -> None:
    template, expected = THINKS[family]
    assert reasoning_style("auto", template) is (None if expected is None else REASONING_PARSERS[expected])


def test_a_setting_wins_over_the_template() -> None:
    assert tool_parser("none", TOOL_TEMPLATES["mistral"][0]) is None
    assert tool_parser("hermes", TOOL_TEMPLATES["mistral"][0]) is TOOL_PARSERS["hermes"]
    assert reasoning_style("none", THINKS["qwen3"][0]) is None
    assert reasoning_style("deepseek", THINKS["llama"][0]) is REASONING_PARSERS["deepseek"]
