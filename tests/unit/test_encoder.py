"""train.encoder and train.chat: which tokens are learnt, of texts, completions and chats; and templates that fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

np = pytest.importorskip("numpy")
transformers = pytest.importorskip("transformers")

from chat_tokenizers import CHATML, FORGETFUL, LLAMA_2, MARKED, PLAIN, make_tokenizer  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from fullft_cluster.config import Config, DataConfig  # noqa: E402
from fullft_cluster.errors import UsageError  # noqa: E402
from fullft_cluster.samples import Sample  # noqa: E402
from fullft_cluster.train.encoder import Encoded, Encoder  # noqa: E402
from fullft_cluster.train.tokenizer import encoder_settings, load_tokenizer, padding_id  # noqa: E402

BOS, EOS, IM_START, IM_END = 1, 2, 2048, 2049
CHAT = (
    {"role": "user", "content": "What is 2 and 3?"},
    {"role": "assistant", "content": "It is 5."},
    {"role": "user", "content": "And 4 more?"},
    {"role": "assistant", "content": "Then it is 9."},
)


class Learner:
    """An encoder and its tokenizer."""

    def __init__(self, directory: Path, template: str | None = None, **data: Any) -> None:
        pad = data.pop("pad", "<pad>")
        config = Config(
            model="tiny", weights="random", tokenizer=str(make_tokenizer(directory, template, pad=pad)),
            data=DataConfig(**data),
        )  # fmt: skip
        self.tokenizer = load_tokenizer(config)
        self.settings = encoder_settings(config, self.tokenizer)
        self.encoder = Encoder(self.settings)

    def encode(self, *samples: Sample) -> Encoded:
        return self.encoder.encode(samples)

    def marked(self, sample: Sample) -> str:
        """Return a sample as it is learnt: what is supervised in [[ ]]."""
        documents = self.encode(sample).documents
        runs: list[tuple[bool, list[int]]] = []
        for token, bit in zip(documents.tokens.tolist(), documents.supervised.tolist(), strict=True):
            if not runs or runs[-1][0] != bit:
                runs.append((bit, []))
            runs[-1][1].append(token)
        texts = [(bit, self.tokenizer.decode(tokens)) for bit, tokens in runs]
        return "".join(f"[[{text}]]" if bit else text for bit, text in texts)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Learner:
    return Learner(tmp_path_factory.mktemp("plain"))


def chat(*messages: dict[str, str]) -> Sample:
    return Sample(where="f:1", format="messages", messages=messages)


def completion(prompt: str, answer: str) -> Sample:
    return Sample(where="f:1", format="prompt_completion", prompt=prompt, completion=answer)


def test_texts_are_learnt_whole_and_completions_alone(plain: Learner) -> None:
    assert plain.marked(Sample("f:1", "text", completion="Some words")) == "[[<s>Some words</s>]]"
    assert plain.marked(completion("Some words", " are here")) == "<s>Some words[[ are here</s>]]"


def test_inputs_too_when_asked(tmp_path: Path) -> None:
    everything = Learner(tmp_path, CHATML, train_on_inputs=True)
    assert everything.marked(completion("Some words", " are here")) == "[[<s>Some words are here</s>]]"
    assert everything.marked(chat(*CHAT[:2])).startswith("[[<|im_start|>user\nWhat")


def test_eos_and_bos_are_not_doubled(plain: Learner) -> None:
    assert plain.marked(completion("<s>Some words", " are</s>")) == "<s>Some words[[ are</s>]]"
    assert plain.marked(Sample("f:1", "text", completion="<s>Some words</s>")) == "[[<s>Some words</s>]]"


def test_a_token_on_both_sides_of_the_seam_is_learnt(plain: Learner) -> None:
    """It holds characters of the completion; the text is tokenised once, as it will be generated."""
    whole = plain.tokenizer(" the", add_special_tokens=False)["input_ids"]
    assert len(whole) == 1
    documents = plain.encode(completion("In t", "he end")).documents
    learnt = documents.tokens[documents.supervised].tolist()
    assert learnt == [*whole, *plain.tokenizer(" end", add_special_tokens=False)["input_ids"], EOS]


words = st.text("ab \n\t.é漢🙂1", min_size=0, max_size=12)


@settings(max_examples=150, deadline=None)
@given(prompt=words, answer=words.filter(bool))
def test_what_is_learnt_holds_the_completion_and_no_more(plain: Learner, prompt: str, answer: str) -> None:
    """Whatever bytes the characters become: the tokens before hold nothing of it, the first one does."""
    documents = plain.encode(completion(prompt, answer)).documents
    first = int(np.argmax(documents.supervised))
    assert documents.supervised[first:].all(), "to the end, EOS too"
    assert documents.tokens[-1] == EOS
    if not prompt:
        assert first == 0
        return
    before = plain.tokenizer.decode(documents.tokens[1:first])
    through = plain.tokenizer.decode(documents.tokens[1 : first + 1])
    size = len(prompt.encode())
    # A character of several bytes may be cut: its first bytes decode to the mark of what is no character.
    assert len(before.replace("�", "").encode()) <= size
    assert len(through.encode()) > size or "�" in through


CHATML_LEARNT = (
    "<|im_start|>user\nWhat is 2 and 3?<|im_end|>\n<|im_start|>assistant\n[[It is 5.<|im_end|>]]\n"
    "<|im_start|>user\nAnd 4 more?<|im_end|>\n<|im_start|>assistant\n[[Then it is 9.<|im_end|>]]\n"
)


@pytest.mark.parametrize(
    ("template", "learnt", "end_of_turn"),
    [
        (CHATML, CHATML_LEARNT, IM_END),
        (MARKED, CHATML_LEARNT, IM_END),  # the token that ends a turn lies outside of the marks
        (MARKED.replace("{% endgeneration %}", "\n{% endgeneration %}"), CHATML_LEARNT.replace(".<", ".\n<"), IM_END),
        (
            LLAMA_2,
            "<s>[INST] What is 2 and 3? [/INST][[ It is 5. </s>]]<s>[INST] And 4 more? [/INST][[ Then it is 9. </s>]]",
            EOS,
        ),
        # Nothing else ends the turn, so EOS follows the last word at once.
        (
            PLAIN,
            "user: What is 2 and 3?\nassistant:[[ It is 5.]]\nuser: And 4 more?\nassistant:[[ Then it is 9.</s>]]",
            None,
        ),
    ],
)  # fmt: skip
def test_the_assistants_turns_are_learnt_and_what_ends_them(
    tmp_path: Path, template: str, learnt: str, end_of_turn: int | None
) -> None:
    learner = Learner(tmp_path, template)
    assert learner.marked(chat(*CHAT)) == learnt
    assert learner.encoder.end_of_turn == end_of_turn
    assert learner.settings.vocab_size % 64 == 0, "the vocabulary grows with the tokens that are added"
    assert learner.settings.vocab_size > IM_END


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_what_the_assistant_says_in_a_prompt_is_not_learnt(tmp_path: Path, template: str) -> None:
    sample = Sample("f:1", "prompt_completion", messages=CHAT, prompt_messages=3)
    learnt = CHATML_LEARNT.replace("[[It is 5.<|im_end|>]]", "It is 5.<|im_end|>")
    assert Learner(tmp_path, template).marked(sample) == learnt


def test_a_chat_that_ends_with_the_user_teaches_no_end_after_him(tmp_path: Path) -> None:
    learner = Learner(tmp_path, CHATML)
    assert learner.marked(chat(*CHAT[:3])) == CHATML_LEARNT.partition("<|im_start|>assistant\n[[Then")[0]
    assert Learner(tmp_path / "p", PLAIN).marked(chat(*CHAT[:3])).endswith("user: And 4 more?\n")


def test_pad_may_be_eos_or_absent(tmp_path: Path) -> None:
    """Whatever the pad token is, what is learnt stays the same."""
    for pad in ("</s>", None):
        learner = Learner(tmp_path / str(pad), CHATML, pad=pad)
        assert learner.marked(completion("Some words", " are here")) == "<s>Some words[[ are here</s>]]"
        assert padding_id(learner.tokenizer, learner.settings) == EOS


def test_a_tokenizer_without_eos_is_refused(tmp_path: Path) -> None:
    directory = make_tokenizer(tmp_path)
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    settings.pop("eos_token")
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UsageError, match=r"its tokenizer has no EOS token\. Set eos_token"):
        load_tokenizer(Config(model="tiny", weights="random", tokenizer=str(directory)))


def test_a_template_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text(CHATML)
    learner = Learner(tmp_path / "t", PLAIN, chat_template=str(path))
    assert learner.marked(chat(*CHAT)) == CHATML_LEARNT
    assert learner.tokenizer.chat_template == CHATML, "the export saves it with the tokenizer"


def test_there_is_no_template(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is none, and there are chats. Set data\.chat_template"):
        Learner(tmp_path).encode(chat(*CHAT))
    with pytest.raises(UsageError, match=r"gone\.jinja: the chat template cannot be read \(No such file"):
        Learner(tmp_path, chat_template=str(tmp_path / "gone.jinja"))


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for m in messages %}\n{{ m.content }\n{% endfor %}", r"mine\.jinja:2: is no chat template"),
        ("a\n{{ messages[0].words.more }}", r"mine\.jinja: cannot render a question .*mine\.jinja:2"),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "leaves the answer out"),
    ],
)
def test_a_template_that_fails(tmp_path: Path, template: str, said: str) -> None:
    (tmp_path / "mine.jinja").write_text(template)
    learner = Learner(tmp_path / "t", chat_template=str(tmp_path / "mine.jinja"))
    with pytest.raises(UsageError, match=said) as found:
        learner.encode(chat(*CHAT))
    assert "Correct it there" in str(found.value)


def test_a_template_that_changes_earlier_turns_is_refused(tmp_path: Path) -> None:
    learner = Learner(tmp_path, FORGETFUL)
    assert learner.encode(chat(*CHAT[:2])).kept, "one turn alone can be told"
    with pytest.raises(UsageError, match=r"renders the first messages of a chat otherwise .*generation"):
        learner.encode(chat(*CHAT))


def test_a_chat_that_the_template_refuses_is_one_bad_row(tmp_path: Path) -> None:
    learner = Learner(tmp_path, LLAMA_2)
    odd = chat({"role": "system", "content": "Be brief."}, *CHAT)._replace(where="rows.jsonl:7")
    encoded = learner.encode(chat(*CHAT), odd, Sample("f:3", "text", completion="Words"))
    assert [sample.where for sample in encoded.kept] == ["f:1", "f:3"]
    assert len(encoded.documents.lengths) == 2
    (problem,) = encoded.problems
    assert (problem.where, "no such role: system" in problem.what) == ("rows.jsonl:7", True)


def test_ids_outside_of_the_model_are_refused(plain: Learner) -> None:
    import msgspec

    encoder = Encoder(msgspec.structs.replace(plain.settings, vocab_size=100))
    with pytest.raises(UsageError, match="outside the model's vocabulary of 100"):
        encoder.encode([Sample("f:1", "text", completion="some words to learn")])
