"""row_formats: formats are told apart by their keys, and each becomes the prompt, the completion or the chat it is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fullft_cluster.errors import Problem
from fullft_cluster.row_chats import ROLES
from fullft_cluster.row_formats import EXAMPLES, Reader, tell
from fullft_cluster.samples import Sample

USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": " Hello\n"}


def read(row: dict[str, Any], form: Any = "auto", inputs: bool = False, **fields: str) -> Sample | Problem:
    return Reader(form, fields, train_on_inputs=inputs).read("f:1", row)


def sample(row: dict[str, Any], form: Any = "auto", inputs: bool = False, **fields: str) -> Sample:
    found = read(row, form, inputs, **fields)
    assert isinstance(found, Sample), found
    return found


def problem(row: dict[str, Any], form: Any = "auto", inputs: bool = False, **fields: str) -> str:
    found = read(row, form, inputs, **fields)
    assert isinstance(found, Problem), found
    return str(found)


@pytest.mark.parametrize(
    ("row", "form", "prompt", "completion"),
    [
        ({"text": " as it is\n"}, "text", "", " as it is\n"),
        ({"prompt": "a ", "completion": " b"}, "prompt_completion", "a ", " b"),
        ({"prompt": "", "completion": "b", "text": "x"}, "prompt_completion", "", "b"),
        ({"question": "1+1?", "answer": "2"}, "question_answer", "Question: 1+1?\nAnswer:", " 2"),
        ({"text": "x", "question": "1+1?", "answer": None}, "text", "", "x"),
        (
            {"instruction": "Add {a}.", "input": "1 {x}", "output": "3 ", "text": "rendered"},
            "alpaca",
            "Below is an instruction that describes a task, paired with an input that provides further context. "
            "Write a response that appropriately completes the request.\n\n### Instruction:\nAdd {a}."
            "\n\n### Input:\n1 {x}\n\n### Response:",
            "3 ",
        ),
    ],
)  # fmt: skip
def test_each_format_is_told_by_its_keys(row: dict[str, Any], form: str, prompt: str, completion: str) -> None:
    assert sample(row) == Sample("f:1", form, prompt, completion)


@pytest.mark.parametrize("absent", [{}, {"input": ""}, {"input": None}])
def test_alpaca_without_an_input_has_the_other_prompt(absent: dict[str, Any]) -> None:
    prompt = sample({"instruction": "Add.", "output": "3", **absent}).prompt
    assert prompt == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Response:"
    )


@pytest.mark.parametrize("key", ["messages", "conversation", "conversations"])
def test_chats_under_every_usual_key(key: str) -> None:
    assert sample({key: [USER, ASSISTANT], "prompt": "Hi"}) == Sample(
        "f:1", "messages", messages=(USER, ASSISTANT)
    )  # content is not stripped


def test_sharegpt_turns_become_roles() -> None:
    said = ["system", "human", "gpt", "tool", "observation", "gpt"]
    row = {"conversations": [{"from": who, "value": who, "weight": 1} for who in said], "id": 3}
    found = sample(row)
    assert found.format == "sharegpt"
    assert found.messages == tuple({"role": ROLES[who], "content": who} for who in said)
    assert {message["role"] for message in found.messages} == {"system", "user", "assistant", "tool"}


def test_what_templates_render_of_a_message_is_kept() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function"}], "refusal": None}
    answer = {"role": "tool", "content": "3", "tool_call_id": "1", "name": "add"}
    parts = {"role": "assistant", "content": [{"type": "text", "text": "It "}, {"type": "text", "text": "is 3."}]}
    found = sample({"messages": [USER, call, answer, parts]}).messages
    assert found[1] == {"role": "assistant", "content": "", "tool_calls": call["tool_calls"]}
    assert found[2] == answer
    assert found[3]["content"] == "It is 3."


def test_prompt_and_completion_of_messages_are_a_chat() -> None:
    found = sample({"prompt": [USER], "completion": [ASSISTANT]})
    assert found == Sample("f:1", "prompt_completion", messages=(USER, ASSISTANT), prompt_messages=1)
    assert sample({"prompt": [], "completion": [ASSISTANT]}).prompt_messages == 0
    assert "completion has no assistant's turn" in problem({"prompt": [USER, ASSISTANT], "completion": [USER]})
    assert "prompt is a list, not a string" in problem({"prompt": [USER], "completion": "a"})


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"messages": []}, "messages is empty"),
        ({"messages": None}, "messages is null, not a list of messages"),
        ({"messages": "Hi"}, "messages is a string, not a list of messages"),
        ({"messages": ["Hi"]}, "messages[0] is a string, not an object with role and content"),
        ({"messages": [{"content": "Hi"}]}, "messages[0] has no role"),
        ({"messages": [{"role": None, "content": "Hi"}]}, "messages[0].role is null"),
        ({"messages": [{"role": "assitant", "content": "Hi"}]}, "'assitant' is no role. Did you mean 'assistant'?"),
        ({"messages": [{"role": 3, "content": "Hi"}]}, "messages[0].role 3 is no role"),
        ({"messages": [USER, {"role": "assistant"}]}, "messages[1] has no content"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "messages[1].content is null"),
        ({"messages": [USER, {"role": "assistant", "content": 3}]}, "messages[1].content is a number"),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, "messages[1].content is empty, and it is the"),
        ({"messages": [USER]}, "messages has no assistant's turn, so nothing to learn. Set data.train_on_inputs"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ASSISTANT]}, "a part that is no text"),
        ({"messages": [USER, ASSISTANT], "tools": [{"name": "add"}]}, "row has tools"),
        ({"conversations": [{"from": "alien", "value": "Hi"}]}, "conversations[0].from 'alien' is no role"),
        ({"prompt": "a"}, "row has no completion"),
        ({"prompt": None, "completion": "b"}, "prompt is null"),
        ({"question": "a", "answer": ""}, "answer is empty"),
        ({"instruction": "a", "output": 3}, "output is a number, not a string"),
        ({"instruction": "a", "input": ["b"], "output": "c"}, "input is a list, not a string"),
        ({"a": 1, "\x1b[2J": 2}, r"row has no text; its keys are a, '\x1b[2J'"),
    ],
)
def test_what_cannot_be_used_is_told_with_a_way_out(row: dict[str, Any], says: str) -> None:
    found = read(row)
    assert isinstance(found, Problem)
    assert says in str(found)
    assert found.fix


def test_users_alone_are_learnt_where_inputs_are() -> None:
    assert sample({"messages": [USER]}, inputs=True).messages == (USER,)


def test_the_first_good_row_tells_the_format_of_the_others() -> None:
    reader = Reader("auto", {}, train_on_inputs=False)
    assert isinstance(reader.read("f:1", {"text": 3}), Problem)
    assert reader.format == "auto"
    assert isinstance(reader.read("f:2", {"question": "a", "answer": "b"}), Sample)
    assert reader.format == "question_answer"
    other = reader.read("f:3", {"text": "x"})
    assert str(other) == (
        "f:3: row is text, and the rows of this source are question_answer (told by f:2)."
        ' Write {"question": "...", "answer": "..."}, or make it a source of its own (data.sources).'
    )
    assert isinstance(reader.read("f:4", {"text": "x", "question": "a", "answer": "b"}), Sample)
    assert isinstance(reader.read("f:5", {"question": "a"}), Problem)


def test_a_named_format_wins_over_what_the_keys_say() -> None:
    row = {"text": "x", "prompt": "a", "completion": "b"}
    assert sample(row, "text") == Sample("f:1", "text", "", "x")
    assert "row is text, and the rows of this source are alpaca (data.format)" in problem({"text": "x"}, "alpaca")


def test_fields_name_the_keys_of_the_rows() -> None:
    assert sample({"query": "a", "response": "b"}, prompt="query", completion="response") == Sample(
        "f:1", "prompt_completion", "a", "b"
    )
    row = {"dialog": [{"speaker": "human", "says": "a"}, {"speaker": "bot", "says": "b"}]}
    found = sample(row, messages="dialog", role="speaker", content="says")
    assert [message["role"] for message in found.messages] == ["user", "assistant"]
    assert problem({"qeury": "a", "response": "b"}, prompt="query", completion="response") == (
        "f:1: row has no 'query', which data.fields names. Did you mean 'qeury'?"
    )
    assert "Known: body, title." in problem({"title": "a", "body": "b"}, text="zzz")


@pytest.mark.parametrize("form", EXAMPLES)
def test_the_examples_that_errors_show_are_rows_of_their_format(form: str) -> None:
    import msgspec

    row = msgspec.json.decode(EXAMPLES[form])
    assert tell(row) == form
    assert sample(row).format == form


_any: Any = st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))  # fmt: skip # noqa: E501


@given(
    row=st.dictionaries(st.sampled_from(["text", "prompt", "completion", "messages", "conversations", "tools"]), _any),
    form=st.sampled_from(["auto", *EXAMPLES]),
)
def test_any_row_in_any_format_is_a_sample_or_a_problem(row: dict[str, Any], form: str) -> None:
    found = read(row, form)
    if isinstance(found, Sample):
        assert found.completion.strip() or any(message["role"] == "assistant" for message in found.messages)
    else:
        assert found.what
        assert found.fix
