"""Prompt sets and the token ids that training and inference are made of."""

import copy
import datetime
import json
from types import SimpleNamespace

import pytest
from conftest import REPOSITORY
from stage_runs import refused, run
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

import show_prompts
from utils import prompting
from utils.lora.examples import Example
from utils.prompting import PromptEncoder, PromptSet, load_prompts, tidy_question
from utils.running import InputError

TEXTS = {
    "rewrite": "Rewrite: {passage}", "question_answer_pairs": 'As [{"question": ""}]: {passage}',
    "passage_line": "({number}) {passage}\n", "augmented_pair": "{question} {answer}! ",
    "augmented_passage": "{passage} or {rewrite}; {pairs}",
    "direct": {
        "with_passages": "Read\n{passages}and answer {question}",
        "without_passages": "Answer {question}",
        "opening": "The answer is",
    },
    "cot": {
        "example": "E {question} {answer}\n",
        "with_passages": "{examples}Read\n{passages}and think {question}",
        "without_passages": "{examples}Think {question}",
        "opening": "Answer:",
    },
}  # fmt: skip
NO_THOUGHT = "<think>\n\n</think>\n\n"
EXAMPLES = [{"question": "Who?", "answer": "So the answer is I."}]
LLAMA_3_DATES = """
{%- if not date_string is defined %}{%- if strftime_now is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}{%- endif %}
{{- "Today: " + date_string + " " + messages[0]["content"] }}"""


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(REPOSITORY / "data" / "demo" / "demo-model")


def encoder_of(tokenizer, with_cot=False, max_length=3000, texts=TEXTS):
    return PromptEncoder(tokenizer, PromptSet("own", texts, EXAMPLES), with_cot, max_length)


def pairs_of(count):
    texts = {"question": "Why {}? ", "answer": "A{}", "full_answer": "F{}. It is A{}.. "}
    return [{k: text.format(i, i) for k, text in texts.items()} for i in range(count)]


def expected_of(count, with_cot):
    """The text of each training prompt, written out as the paper has it."""
    texts = []
    with_context = {1: 1, 2: 1, 3: 2, 4: 2, 5: 3}[count]
    for i in range(count):
        contexts = ["(1) the passage\n", "(1) the rewrite\n"] if i < with_context else [None]
        for context in contexts:
            examples = "E Who? So the answer is I.\n" if with_cot else ""
            verb = "think" if with_cot else "answer"
            read = f"Read\n{context}and {verb}" if context else verb.capitalize()
            ending = f"Answer: F{i}. It is A{i}." if with_cot else f"The answer is A{i}."
            user = f"{examples}{read} Why {i}?"
            texts.append(f"<|bos|><|user|>{user}<|eot|><|assistant|>{ending}")
    return texts


@pytest.mark.parametrize("with_cot", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_the_training_prompts_of_a_passage_are_those_of_the_paper(tokenizer, count, with_cot):
    texts = (" the passage ", "the rewrite", pairs_of(count), "rewrite,qa")
    prompts = encoder_of(tokenizer, with_cot).passage_examples(*texts)
    assert [tokenizer.decode(one.ids) for one in prompts] == expected_of(count, with_cot)


def test_the_training_prompts_of_an_ablation_leave_out_what_it_names(tokenizer):
    """Figure 3 of the paper: which augmentation an adapter is trained on."""

    def texts(parts: str) -> list[str]:
        made = encoder_of(tokenizer).passage_examples("the passage", "the rewrite", pairs, parts)
        return [tokenizer.decode(example.ids) for example in made]

    pairs = pairs_of(3)
    assert texts("qa") == [text for text in expected_of(3, False) if "the rewrite" not in text]
    assert texts("rewrite") == ["the passage", "the rewrite"]
    assert texts("none") == ["the passage"]


def test_a_plain_text_that_is_too_long_is_cut_and_counted(tokenizer):
    encoder = encoder_of(tokenizer)
    whole = tokenizer("the passage is long")["input_ids"]
    encoder.max_length = len(whole) - 1
    assert encoder.passage_examples("the passage is long", "", [], "none") == [Example(whole[:-1])]
    assert encoder.shortened == 1


def test_a_training_prompt_has_one_start_token_and_no_end_token(tokenizer):
    adding = copy.deepcopy(tokenizer)  # as Llama 3's, which begins every text with its own token
    how = {"single": "<|bos|> $A", "special_tokens": [("<|bos|>", tokenizer.bos_token_id)]}
    adding.backend_tokenizer.post_processor = TemplateProcessing(**how)
    assert adding("x")["input_ids"][0] == tokenizer.bos_token_id
    ids = encoder_of(adding).example("Why", ["the passage"], "x").ids
    assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.convert_tokens_to_ids(".")


@pytest.mark.parametrize("answer", ["x", "x.", " x.. ", "x . "])
def test_an_answer_ends_in_one_full_stop(tokenizer, answer):
    text = tokenizer.decode(encoder_of(tokenizer).example("Why", [], answer).ids)
    assert text.endswith("<|assistant|>The answer is x.")


@pytest.mark.parametrize("question", ["Who is it", " Who is it ??\n", "Who is it ? ?"])
def test_a_question_ends_in_exactly_one_question_mark(question):
    assert tidy_question(question) == "Who is it?"


@pytest.mark.parametrize("name", ["default", "demo"])
@pytest.mark.parametrize("with_cot", [False, True])
def test_an_answer_follows_the_same_tokens_in_training_and_at_inference(tokenizer, name, with_cot):
    prompts = load_prompts(name, "2wikimultihopqa", with_cot)
    encoder = PromptEncoder(tokenizer, prompts, with_cot, 3000)
    for passages in ([], ["One.", "Two {x}."]):
        asked = encoder.question("Who?", passages)
        first_tokens = set()
        for answer in ("Vessland", "12 lakes", "'q'", "(b)", "Örra", "no"):
            example = encoder.example("Who ", passages, answer)
            assert example.ids[: len(asked)] == asked
            assert tokenizer.decode(example.ids[len(asked) :]) == f" {answer}."
            assert example.labels_from == len(asked)
            first_tokens.add(example.ids[len(asked)])
        assert len(first_tokens) > 1  # the answer's own token follows, not a lone space


def test_an_opening_that_ends_in_a_space_gets_no_second_one(tokenizer):
    texts = copy.deepcopy(TEXTS)
    texts["direct"]["opening"] = "The answer is "
    encoder = encoder_of(tokenizer, texts=texts)
    asked = "<|bos|><|user|>Answer Why?<|eot|><|assistant|>The answer is "
    made = {asked: encoder.question("Why", []), asked + "x.": encoder.example("Why", [], "x").ids}
    for text, ids in made.items():
        assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_braces_in_passages_questions_and_answers_are_literal(tokenizer):
    odd = r"{question} {passages} {0} {{x}} \1 \g<0> {number}"
    encoder = encoder_of(tokenizer)
    text = tokenizer.decode(encoder.example(f"Is {odd}", [odd, "b"], odd).ids)
    user = f"Read\n(1) {odd}\n(2) b\nand answer Is {odd}?"
    assert text == f"<|bos|><|user|>{user}<|eot|><|assistant|>The answer is {odd}."
    asked = encoder.prompts.request("question_answer_pairs", odd)
    assert asked == f'As [{{"question": ""}}]: {odd}'
    assert encoder.prompts.request("rewrite", odd) == f"Rewrite: {odd}"


def test_a_long_prompt_loses_passage_text_only_and_is_counted(tokenizer):
    long = "The lake is cold. " * 150
    encoder = encoder_of(tokenizer, max_length=120)
    example = encoder.example("Who wrote it", ["A short one.", long], "Orra")
    ids, text = example.ids, tokenizer.decode(example.ids)
    assert tokenizer.decode(ids[example.labels_from :]) == " Orra."
    assert 100 < len(ids) <= 120  # not much more is cut than must be
    assert text.startswith("<|bos|><|user|>Read\n(1) A short one.\n(2) The lake is cold. The ")
    assert text.endswith("\nand answer Who wrote it?<|eot|><|assistant|>The answer is Orra.")
    assert encoder.shortened == 1
    for kind in ("rewrite", "question_answer_pairs"):
        request = encoder.request(kind, long)
        assert 100 < len(request) <= 120
        assert tokenizer.decode(request).endswith("<|eot|><|assistant|>")
    assert encoder.shortened == 3
    encoder.question("Who wrote it", ["A short one."])
    assert encoder.shortened == 3


@pytest.mark.parametrize("long", ["湖は冬に凍る。" * 100, "1234567890 " * 100])
def test_a_passage_of_long_words_is_shortened_and_not_dropped(tokenizer, long):
    ids = encoder_of(tokenizer, max_length=120).question("Why", [long])
    assert 60 < len(ids) <= 120


@pytest.mark.parametrize("passages", [[], ["one", "two"], [""]])
def test_a_question_that_cannot_fit_is_an_input_error(tokenizer, passages):
    with pytest.raises(InputError, match=r"only 10 are allowed \(--max_length, or"):
        encoder_of(tokenizer, max_length=10).question("Why " * 20, passages)


def test_a_tokenizer_without_chat_template_is_an_input_error(tokenizer):
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    refused("has no chat template", encoder_of, bare)


@pytest.mark.parametrize("template, shown", [
    (LLAMA_3_DATES, "Today: 26 Jul 2024 Answer Why?"),
    ('\n{{ strftime_now("%B %d, %Y") }} {{ messages[0].content }}', "\nJuly 26, 2024 Answer Why?"),
])  # fmt: skip
def test_a_dated_template_gives_the_same_prompt_on_any_day(tokenizer, monkeypatch, template, shown):
    dated = copy.deepcopy(tokenizer)
    dated.chat_template = template
    prompts, undated = [], []
    for day in (1, 2):
        now = SimpleNamespace(now=lambda day=day: datetime.datetime(2031, 5, day))
        monkeypatch.setattr(chat_template_utils, "datetime", now)
        prompts.append(encoder_of(dated).question("Why", []))
        undated.append(dated.apply_chat_template([{"role": "user", "content": ""}], tokenize=False))
    assert undated[0] != undated[1]  # the template does look at the clock
    assert prompts[0] == prompts[1]
    assert dated.decode(prompts[0]) == f"{shown}The answer is"


@pytest.mark.parametrize("ending, shown", [
    ("{% if enable_thinking is false %}" + NO_THOUGHT + "{% endif %}", NO_THOUGHT),
    ("{% if thinking %}<think>{% endif %}", ""), ("{{ '<think>\n' }}", NO_THOUGHT),
    ("[THINK]", "[THINK]\n[/THINK]\n\n"), ("{{ '<|channel|>analysis' }}", "opens a thought"),
    ("{% set message = '' %}", "leaves out the user's message"),
])  # fmt: skip
def test_a_prompt_leaves_no_thought_open_and_no_message_out(tokenizer, ending, shown):
    """What follows is the answer: it must be no part of a thought, and must have been asked for."""
    thinking = copy.deepcopy(tokenizer)
    content = "{{ messages[0].content }}" if "message =" not in ending else ""
    thinking.chat_template = content + ending
    if shown and "<" not in shown and "[" not in shown:
        refused(shown, encoder_of, thinking)
    else:
        made = encoder_of(thinking).example("Why", ["a <think> b"], "x").ids
        asked = "Read\n(1) a <think> b\nand answer Why?"
        assert thinking.decode(made) == f"{asked}{shown}The answer is x."


@pytest.mark.parametrize("place, text, message", [
    ("rewrite", ["list"], r"needs a text 'rewrite' with \{passage\}; add it"),
    ("passage_line", "no place", r"'passage_line' with \{number\}, \{passage\}"),
    ("direct.without_passages", "{question}{passages}", r"passages' with \{question\}; "),
    ("direct", "text", "needs a text 'direct.with_passages'"),
])  # fmt: skip
def test_a_broken_prompt_set_is_refused_with_the_place(tmp_path, place, text, message):
    texts = copy.deepcopy(TEXTS)
    *outer, key = place.split(".")
    holder = texts[outer[0]] if outer else texts
    holder[key] = text
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(texts))
    assert "mine.json" in refused(message, load_prompts, str(path), "popqa", with_cot=False)


def test_your_own_prompt_set_is_read_from_its_path(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(TEXTS))
    prompts = load_prompts(str(path), "2wikimultihopqa", with_cot=True)
    assert (prompts.name, prompts.texts) == ("mine", TEXTS)
    assert len(prompts.examples) > 1
    assert load_prompts("default", "popqa", with_cot=False).examples == []


@pytest.mark.parametrize("content", ["[]", '{"question": 1}', '[{"question": "a"}]', "[[]]"])
def test_broken_few_shot_examples_are_refused(tmp_path, monkeypatch, content):
    (tmp_path / "fewshot").mkdir()
    (tmp_path / "mine.json").write_text(json.dumps(TEXTS))
    (tmp_path / "fewshot" / "D.json").write_text(content)
    monkeypatch.setattr(prompting, "PROMPTS_FOLDER", tmp_path)
    refused(r"few-shot examples .*D\.json", load_prompts, "mine", "D", with_cot=True)


def test_the_fingerprint_tells_texts_and_examples_apart():
    changed = {**TEXTS, "rewrite": "Rewrite! {passage}"}
    sets = [PromptSet("a", TEXTS), PromptSet("a", changed), PromptSet("a", TEXTS, EXAMPLES)]
    assert len({prompts.fingerprint for prompts in sets}) == 3
    assert PromptSet("other name", TEXTS).fingerprint == sets[0].fingerprint


def test_all_prompt_md_shows_the_prompts_as_they_are_sent(capsys):
    run(show_prompts)
    shown = capsys.readouterr().out
    assert shown == (REPOSITORY / "all_prompt.md").read_text(encoding="utf-8"), "run `make prompts`"
    for name in ("default", "demo"):
        prompts = load_prompts(name, "hotpotqa", with_cot=True)
        for passages in ([], show_prompts.PASSAGES):
            for with_cot in (False, True):
                sent = prompts.user_message(show_prompts.QUESTION, passages, with_cot)
                assert f"[user]\n{sent}\n[assistant]\n{prompts.opening(with_cot)}\n````" in shown
