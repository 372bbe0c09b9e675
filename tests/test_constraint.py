"""Question lists that are held to their form: what is allowed, what is kept, what is refused."""

import json
import re

import pytest
import torch
from augment_runs import records_at
from fake_openai import FakeOpenAI
from llguidance import LLMatcher
from stage_runs import AUGMENT, MODEL, refused, run
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import augment
from utils.augmentation import constraint, writing
from utils.augmentation.constraint import Held, ListForm, list_grammar
from utils.augmentation.records import PAIR_FIELDS, in_passage, list_schema, parse_pairs
from utils.augmentation.sampling import Sampling
from utils.augmentation.server import Server
from utils.files import write_json
from utils.generation import SeededSampling, generate
from utils.metrics import answer_presence
from utils.prompting import PROMPTS_FOLDER, load_prompts

pytest_plugins = ["augment_runs"]
PASSAGE = 'Lake Orra (in "Vessland")  lies 12.5 km\nfrom Brun. It freezes in mid-winter.'
PAIR = {"question": "Where is Lake Orra?", "answer": "Vessland", "full_answer": "It is there."}


@pytest.fixture(scope="module")
def tokenizer():
    """Its tokens are the printable ASCII characters; token 95 ends the text."""
    characters = [chr(i) for i in range(32, 127)]
    vocabulary = {c if c != " " else "Ġ": number for number, c in enumerate(characters)}
    raw = Tokenizer(models.BPE(vocabulary | {"<end>": 95}, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
    raw.add_special_tokens(["<end>"])
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>", pad_token="<end>")


@pytest.fixture(scope="module")
def form(tokenizer):
    return ListForm(tokenizer, 95, PAIR_FIELDS, ("Where", "Who"), True)


def ids_of(text: str) -> list[int]:
    return [ord(character) - 32 for character in text]


def takes(form: ListForm, text: str, openings: tuple[str, ...] = ()) -> bool:
    grammar = LLMatcher.grammar_from_lark(list_grammar(PAIR_FIELDS, PASSAGE, openings))
    matcher = LLMatcher(form.tokenizer, grammar)
    whole = matcher.try_consume_tokens(ids_of(text)) == len(text)
    return whole and matcher.is_stopped() and not matcher.get_error()


def is_plain(word: str) -> bool:
    """A word of a question that needs no passage, or is in it."""
    return not re.search(r"[A-Z0-9]", word) or bool(re.search(r"Lake|Orra|Brun|12\.5", word))


def is_list(text: str, openings: tuple[str, ...]) -> bool:
    """The grammar as plain Python, for one line of ASCII."""
    try:
        pairs = json.loads(text)
    except ValueError:
        return False
    spans = {" ".join(PASSAGE.split())[i:j] for i in range(80) for j in range(i + 1, 81)}
    return text == json.dumps(pairs) and len(pairs) == 3 and all(
        list(pair) == list(PAIR_FIELDS)
        and re.fullmatch(r"([^\s?]+ ){2,}[^\s?]*\?", pair["question"])
        and pair["question"].split()[0] in (openings or [pair["question"].split()[0]])
        and (not openings or all(map(is_plain, pair["question"].split()[1:])))
        and pair["answer"] in spans
        and answer_presence(PASSAGE, pair["answer"])
        and pair["answer"][0].isalnum()
        and pair["answer"][-1].isalnum()
        and pair["full_answer"].split(" ") == pair["full_answer"].split() != []
        for pair in pairs
    )  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [{}, {"answer": "12.5 km from"}, {"answer": "12.5"}, {"answer": "mid-winter"},
     {"answer": "winter"}, {"answer": "12"}, {"answer": "Orra Lake"}, {"answer": "Brun."},
     {"answer": "orra"}, {"answer": ""}, {"answer": " Brun"}, {"answer": "Vess"},
     {"question": "Where is Lake  Orra?"}, {"question": "Where is it"}, {"question": "Where?"},
     {"question": "Is it there?"}, {"question": "Where is Lake Como?"},
     {"question": "Who is 12.5 km from 'Brun', a town?"}, {"question": "Who is 13 km away?"},
     {"question": "Where is it? Or is it?"}, {"full_answer": ""},
     {"full_answer": "It is there. "}, {"full_answer": "No }"}, {"more": "x"}],
)  # fmt: skip
@pytest.mark.parametrize("openings", [(), ("Where", "Who")])
def test_the_grammar_takes_what_is_a_list_and_nothing_else(form, change, openings):
    text = json.dumps([PAIR, {**PAIR, **change}, PAIR])
    bare = "}" not in change.get("full_answer", "")
    assert takes(form, text, openings) == (is_list(text, openings) and bare)


def test_a_tokenizer_of_the_kind_of_sentencepiece_is_read():
    """Its spaces are "▁", also before the text; what it has no token for is spelt in bytes."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁"]
    pieces += [chr(i) for i in range(33, 127)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    raw = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    raw.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    raw.add_special_tokens(["<s>", "</s>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>")
    held = ListForm(fast, 2, PAIR_FIELDS, (), True).held(["Lake Örra, 12 km"])(None)
    text = json.dumps([{**PAIR, "answer": "Örra, 12"}] * 3, ensure_ascii=False)
    ids = fast(text, add_special_tokens=False)["input_ids"]
    assert held.matchers[0].try_consume_tokens(ids) == len(ids)
    assert held.matchers[0].is_stopped()


@pytest.mark.parametrize("other", [[PAIR] * 4, [PAIR] * 2, [dict(reversed(PAIR.items()))] * 3])
def test_three_pairs_in_one_order(form, other):
    assert takes(form, json.dumps([PAIR] * 3)) and takes(
        form, json.dumps([PAIR] * 3, separators=(",", ":"))
    )
    assert not takes(form, json.dumps(other)) and not takes(form, json.dumps([PAIR] * 3) + " ")


def test_the_mask_allows_exactly_what_can_still_become_a_list(form):
    """At each place of a list: the allowed tokens are those that a matcher takes."""
    text, seen = json.dumps([PAIR] * 3), {}
    held = form.held([PASSAGE])(None)
    for place, character in enumerate([*text, "<end>"]):
        allowed = held._allowed([0], torch.zeros(1, 100))[0].nonzero().flatten().tolist()
        copies = [held.matchers[0].deep_copy() for _ in range(95)]
        taken = [token for token, one in enumerate(copies) if one.try_consume_tokens([token])]
        assert taken == [token for token in allowed if token != 95]
        seen[text[:place]] = "".join(chr(32 + token) for token in allowed)
        scores = torch.zeros(1, 100)
        scores[0, 95 if character == "<end>" else ord(character) - 32] = 1.0
        assert held(None, scores).argmax() == scores.argmax()
    assert seen["["] == " {" and seen['[{"question": "W'] == "h" and seen[text] == chr(127)
    assert seen['[{"question": "Where is Lake Orra?", "answer": "'] == "1BILOVfiklm"


def test_a_choice_that_is_allowed_is_kept_and_another_is_drawn_among_the_allowed():
    """As if the forbidden token had not been there; each row with its own random numbers."""
    count, scores = 6000, torch.tensor([1.0, -0.5, 0.3, 2.0])

    class Forbids3:
        def is_error(self):
            return False

        def try_consume_tokens(self, tokens):
            return int(tokens != [3])

    sampling = SeededSampling(list(range(count)), 0.7, 4)
    held = Held([Forbids3() for _ in range(count)], 4, sampling)
    allowed = torch.tensor([True, True, True, False])
    held._allowed = lambda rows, scores: allowed.expand(len(rows), 4)
    rows = scores.expand(count, 4)
    free = SeededSampling(list(range(count)), 0.7, 4)(None, rows).argmax(-1)
    chosen = held(None, rows).argmax(-1)
    assert torch.equal(chosen[free != 3], free[free != 3])
    shares = torch.bincount(chosen, minlength=4) / count
    assert shares[3] == 0
    assert (shares[:3] - torch.softmax(scores[:3] / 0.7, -1)).abs().max() < 0.02


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_texts_of_a_batch_are_lists_and_those_of_one_passage_at_a_time(
    form, tokenizer, temperature, monkeypatch
):
    """By a random model, which would end no string by itself."""
    most = {"question": 20, "answer": 10, "full_answer": 20}
    monkeypatch.setattr(constraint, "MOST_CHARACTERS", most)
    monkeypatch.setitem(constraint.MOST_WORDS, "question", 3)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = LlamaConfig(vocab_size=100, num_attention_heads=1, num_key_value_heads=1, **sizes)
    model = LlamaForCausalLM(config).eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 95, 95
    passages = [PASSAGE, "In 1914 Brun was a town.", "It is a lake."]

    def write(rows: list[int]) -> list[str]:
        how = {"seeds": [row + 5 for row in rows], "temperature": temperature}
        held = form.held([passages[row] for row in rows])
        prompts = [ids_of(passages[row].replace("\n", " ")) for row in rows]
        return generate(model, tokenizer, prompts, 500, **how, held=held)

    together = write([0, 1, 2])
    assert together == [write([row])[0] for row in range(3)]
    for passage, text in zip(passages, together, strict=True):
        pairs = json.loads(text)
        assert len(pairs) == 3 and [list(pair) for pair in pairs] == [list(PAIR_FIELDS)] * 3
        assert parse_pairs(text) and all(in_passage(pair["answer"], passage) for pair in pairs)


@pytest.mark.parametrize("passage", ["!!!", "東京は首都です。" * 30, "x" * 500])
def test_a_passage_without_words_stops_nothing(tokenizer, passage):
    form = ListForm(tokenizer, 95, PAIR_FIELDS, (), True)
    held = form.held([passage])(None)
    begun = ids_of('[{"question": "Where is it?", "answer": "')
    for token in [*begun, *ids_of('x"')]:
        held(None, torch.nn.functional.one_hot(torch.tensor([token]), 96).float())


@pytest.mark.parametrize(
    "answer, passage, there",
    [("the Orra", "Lake Orra, frozen", True), ("Or", "Lake Orra", False), ("a", "a lake", True),
     ("1,200", "1200 lakes", True), ("東京", "東京は首都です", True), ("Orra", "", False)],
)  # fmt: skip
def test_an_answer_is_looked_for_as_the_metrics_compare(answer, passage, there):
    assert in_passage(answer, passage) == there


def lists(monkeypatch, texts: list[list[dict]]) -> None:
    """The model writes these lists one after the other, and rewrites."""
    waiting = iter(texts)

    def write(self, requests, then):
        for one in requests:
            while one:
                one = then(one, "again" if one.kind == "rewrite" else json.dumps(next(waiting)))

    monkeypatch.setattr(writing, "load_model", lambda *_: None)
    monkeypatch.setattr(writing.LocalModel, "_list_form", lambda *_: None)
    monkeypatch.setattr(writing.LocalModel, "write", write)


def quiz(root, *flags: str) -> None:
    golden = [{"question": "Where?", "answer": "A", "golden_passages": ["One and two or three."]}]
    write_json(root / "quiz.json", golden)
    common = ("--model_name", MODEL, "--prompts", "small", "--dataset", "quizzes")
    run(augment, *common, "--data_path", str(root / "quiz.json"), "--engine", "golden", *flags)


def pair(question: str, answer: str) -> dict[str, str]:
    return {"question": question, "answer": answer, "full_answer": answer}


def test_the_good_pairs_of_a_list_are_kept_and_the_next_attempt_adds_to_them(
    root, monkeypatch, capsys
):
    first = [pair("A?", "one"), pair("B?", "four"), pair("a?", "two")]
    lists(monkeypatch, [first, [pair("A?", "two"), pair("C?", "two"), pair("D?", "three")]])
    quiz(root)
    (record,) = json.loads((root / "data_aug/quizzes/quiz.json").read_text())
    kept = record["augment"][0]["demo-model_qa"]
    assert [(one["question"], one["answer"]) for one in kept] == [
        ("A?", "one"), ("C?", "two"), ("D?", "three"),
    ]  # fmt: skip
    said = capsys.readouterr().out
    assert "of 6 pairs 16.7% had an answer that is not in the passage, 33.3% a question" in said
    settings = json.loads((root / "data_aug/quizzes/.quiz.demo-model.settings").read_text())
    assert settings["constrained"] is settings["check_answers"] is True
    said = "constrained = true, but this run has constrained = false"
    refused(said, quiz, root, "--constrained", "off")


def test_a_passage_with_fewer_than_three_good_pairs_is_dropped(root, monkeypatch):
    lists(monkeypatch, [[pair("A?", "one"), pair("B?", "two"), pair("C?", "nine")]] * 2)
    refused("none of 1 passages got a valid list", quiz, root, "--max_attempts", "2")
    lists(monkeypatch, [[pair("A?", "one"), pair("B?", "two"), pair("C?", "nine")]])
    quiz(root, "--check_answers", "off")


def test_a_server_gets_the_schema_and_may_refuse_it():
    """With lists alone, once, and said once; other refusals are not mixed up with it."""
    prompts, said = load_prompts("small", "", False), []
    with FakeOpenAI(text=lambda body: json.dumps([PAIR] * 3)) as fake:
        options, _ = augment.parse_arguments([*AUGMENT, "--api_base", fake.url])
        opened = Server(options, prompts, Sampling.of(options, prompts), said.append)
        opened.answer("question_answer_pairs", "one", 1)
        opened.answer("rewrite", "one", 1)
        form = fake.requests[0]["response_format"]
        assert form["json_schema"]["schema"] == list_schema(prompts.pair_order)
        assert "response_format" not in fake.requests[1] and not said
        fake.refused = {"response_format"}
        for kind in ("question_answer_pairs", "question_answer_pairs", "rewrite"):
            opened.answer(kind, "one", 1)
    assert len(said) == 1 and "takes no response_format: lists are not constrained" in said[0]
    assert all("top_k" in request for request in fake.requests)


def test_a_prompt_set_decides_whether_and_in_which_order():
    shown = {p.stem: load_prompts(p.stem, "", False) for p in PROMPTS_FOLDER.glob("*.json")}
    assert shown["default"].pair_order == list(PAIR_FIELDS) and not shown["demo"].pair_order
    for key in ("direct", "cot", "rewrite", "passage_line", "augmented_passage"):
        assert shown["small"].texts[key] == shown["default"].texts[key]
    options, _ = augment.parse_arguments(AUGMENT)
    assert not Sampling.of(options, shown["demo"]).constrained
    assert Sampling.of(options, shown["demo"]).recorded.keys() == {
        "max_new_tokens", "temperature", "top_k_sampling", "max_attempts", "seed", "pairs",
    }  # fmt: skip
    assert Sampling.of(options, shown["small"]).check_answers


def test_lists_are_free_if_the_tokens_do_not_spell_the_text_and_this_is_said(indexed, capsys):
    """As those of the demo model, with their word joiners."""
    run(augment, *AUGMENT, "--sample", "1", "--constrained", "on", "--check_answers", "off")
    said = capsys.readouterr().out
    assert said.count("question lists are not constrained: no grammar for this tokenizer") == 1
    assert records_at(indexed)[0]["augment"]


@pytest.mark.parametrize("openings", ["What", ["What", 3], [""], None])
def test_broken_question_openings_are_refused(tmp_path, openings):
    texts = load_prompts("small", "", False).texts
    write_json(tmp_path / "own.json", {**texts, "question_openings": openings})
    refused(
        "question_openings in the prompt set", load_prompts, str(tmp_path / "own.json"), "", False
    )
