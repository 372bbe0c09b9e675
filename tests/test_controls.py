"""Every control's definition: what is taken away, what comes instead, and nothing else."""

import json
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from adapter_runs import demo_bank
from conftest import REPOSITORY, edited
from stage_runs import (
    ADAPTERS,
    ALL,
    ENCODE,
    MODEL,
    RESULTS,
    answer,
    refused,
    run,
    tree,
    watched,
)

import encode
import inference
from utils import batches
from utils.controls import with_noise, with_other_questions, without_gold
from utils.lora.bank import LoraBank
from utils.lora.merges import weighted
from utils.models import load_tokenizer
from utils.prompting import PromptEncoder, load_prompts
from utils.sources.random_norm import delta_norm
from utils.store.folders import load_adapter, read_training, stored_fingerprint

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
import counterfactual

DATA = "data_aug/demo/dev.json"
WARM = str(REPOSITORY / "data/demo/warmup.json")


def record(answer, *passages, question="Who?", **more) -> dict:
    """A record whose passage number i has the score 9 - i."""
    entries = [{"pid": i, "passage": p, "score": 9 - i} for i, p in enumerate(passages)]
    fields = {"test_id": 0, "question": question, "answer": answer, "passages": [*passages]}
    return {**fields, "augment": entries, **more}


def rows_of(root, method: str) -> list[dict]:
    return json.loads((root / RESULTS / method / "dev/predict.json").read_text())


def passages_of(records: list[dict]) -> list[list[str]]:
    for one in records:
        assert one["passages"] == [entry["passage"] for entry in one["augment"]]
    return [one["passages"] for one in records]


# ------------------------------------------------------------------------------------------------
# Random adapters


def test_random_adapters_are_as_large_as_the_trained_ones_and_nothing_else(copy, capsys):
    flags = [*ENCODE, "--adapters", "random"]
    run(encode, *flags)
    place = copy / ADAPTERS.replace("epoch=2", "epoch=2_adapters=random")
    shapes, seen = demo_bank().shapes(2), {}
    for folder in sorted((copy / ADAPTERS).glob("data_*/passage_*")):
        own = place / folder.relative_to(copy / ADAPTERS)
        trained, drawn = (load_adapter(one, shapes) for one in (folder, own))
        seen.setdefault(stored_fingerprint(folder), set()).add(stored_fingerprint(own))
        for name, (A, B) in trained.items():
            new_A, new_B = drawn[name]
            assert torch.allclose(new_A.norm(), A.norm(), rtol=1e-5)
            assert torch.allclose((new_B @ new_A).norm(), (B @ A).norm(), rtol=1e-4)
            cosine = F.cosine_similarity((B @ A).flatten(), (new_B @ new_A).flatten(), 0)
            assert abs(cosine) < 0.1 and (B @ A).norm() > 0
    assert all(len(one) == 1 for one in seen.values())  # one for each different trained one
    assert len({*map(min, seen.values())}) == len(seen)
    before = tree(copy / "offline")
    run(encode, *flags)
    assert "12 adapters exist already" in capsys.readouterr().out
    run(encode, *flags, "--overwrite")
    assert tree(copy / "offline") == before
    answer("prag", "--adapters", "random")
    assert read_training(place / "data_0/passage_0")["adapters"] == "random"


def test_the_norm_of_a_delta_is_that_of_the_product():
    A, B = torch.randn(2, 50), torch.randn(70, 2)
    assert delta_norm(A, B) == pytest.approx(float((B @ A).norm()), rel=1e-5)
    assert delta_norm(A, 0 * B) == 0


# ------------------------------------------------------------------------------------------------
# Gold passages left out


def test_a_gold_passage_holds_a_right_answer_or_is_named_by_the_data_set():
    records = [
        record(["Ada Orr", "Orr"], "By ada  ORR.", "By Orra.", "Mr. Orr's."),
        record("yes", "yes, it is", "no", golden_passages=["no"]),
        record("1921", "In 1921", "In 19210", golden_passages=["elsewhere"]),
        record("東京", "彼は東京に住む", "大阪"),
    ]
    kept = passages_of(without_gold(records))
    assert kept == [["By Orra."], ["yes, it is"], ["In 19210"], ["大阪"]]
    assert passages_of(records)[2] == ["In 1921", "In 19210"]  # they stay as they are


@pytest.mark.parametrize("flag, value, label, changed", [
    ("leave_out", "gold", "without=gold", without_gold),
    ("noise", "last", "noise=last", lambda records: with_noise(records, "last", 0)),
])  # fmt: skip
def test_what_a_control_changes_is_in_the_prompt_and_among_the_adapters(
    copy, monkeypatch, flag, value, label, changed
):
    records = changed(json.loads((copy / DATA).read_text()))
    if flag == "leave_out":
        counts = {len(one["augment"]) for one in records}
        assert min(counts) < 3 and max(counts) > 0
    merged = watched(monkeypatch, LoraBank, "ready")
    asked = watched(monkeypatch, batches, "generate")
    answer("combine", f"--{flag}", value)
    check_what_is_read(copy, records, merged, asked)
    plain, other = (rows_of(copy, name) for name in ("combine", f"combine_{label}"))
    assert [one["question"] for one in plain] == [one["question"] for one in other]
    leaves = (copy / RESULTS / name / "dev/config.json" for name in ("combine", f"combine_{label}"))
    plain, config = (json.loads(leaf.read_text()) for leaf in leaves)
    assert {name: config.get(name) for name in ("leave_out", "noise")} == {
        "leave_out": None, "noise": None, flag: value
    } and flag not in plain  # fmt: skip
    assert config["data"] == plain["data"] and config["weights"] != plain["weights"]
    answer("combine")  # the plain result is another, and is complete


def check_what_is_read(root, records, merged, asked) -> None:
    """The adapters and the prompts of a run are those of `records` and no others."""
    shapes, deltas = demo_bank().shapes(2), []
    for did, one in enumerate(records):
        places = [f"data_{e.get('of', did)}/passage_{e['pid']}" for e in one["augment"]]
        own = [load_adapter(root / ADAPTERS / place, shapes) for place in places]
        deltas.append({n: sum(a[n][1] @ a[n][0] for a in own) if own else None for n in shapes})
    used = [
        {n: B @ A for n, (A, B) in adapter.items()} for _, many, _ in merged for adapter in many
    ]
    for wanted in deltas:
        zeros = {n: torch.zeros(B[0], A[1]) for n, (A, B) in shapes.items()}
        wanted = zeros if None in wanted.values() else wanted
        assert any(all(torch.allclose(wanted[n], d[n], atol=1e-6) for n in shapes) for d in used)
    prompts = [tokenizer.decode(p) for _, tokenizer, prompts, *_ in asked for p in prompts]
    for one in records:
        question = one["question"].rstrip("?")
        [prompt] = {p for p in prompts if question in p.split("Question: ")[-1]}
        lines = prompt.split("Passage ")[1:]
        assert len(lines) == len(one["augment"])
        for line, entry in zip(lines, one["augment"], strict=True):
            assert entry["passage"] in line


# ------------------------------------------------------------------------------------------------
# Noise


RECORDS = [
    record("Orr", "Orr a", "b", "c"),
    record("Ulm", "d", "b", "Ulm e", golden_passages=["c"]),
    record("Rhee", "f, not Ulm", "Rhee g"),
    record("Vo", "h"),
]


@pytest.mark.parametrize("place, kept", [
    ("first", [[None, "b", "c"], [None, "b", "Ulm e"], [None, "Rhee g"], [None]]),
    ("last", [["Orr a", "b", None], ["d", "b", None], ["f, not Ulm", None], [None]]),
    ("all", [[None] * 3, [None] * 3, [None] * 2, [None]]),
])  # fmt: skip
def test_noise_replaces_passages_by_those_of_other_questions(place, kept):
    own = [{*one} for one in passages_of(RECORDS)]
    home = {}
    for did, one in enumerate(RECORDS):
        for entry in one["augment"]:
            home.setdefault(entry["passage"], (did, entry["pid"]))
    drawn = set()
    for seed in range(20):
        noisy = with_noise(RECORDS, place, seed)
        assert noisy == with_noise(RECORDS, place, seed)
        for did, (one, wanted) in enumerate(zip(noisy, kept, strict=True)):
            assert [e["score"] for e in one["augment"]] == [9 - i for i in range(len(wanted))]
            new = [e for e, old in zip(one["augment"], wanted, strict=True) if old is None]
            assert [e["passage"] for e in one["augment"] if "of" not in e] == list(
                filter(None, wanted)
            )
            texts = [e["passage"] for e in new]
            assert len({*texts}) == len(texts) and not own[did] & {*texts}
            assert not any(RECORDS[did]["answer"] in text for text in texts)
            assert did != 1 or "c" not in texts  # the data set names it as supporting
            assert all((e["of"], e["pid"]) == home[e["passage"]] for e in new)
            drawn.add((did, *texts))
    assert len(drawn) > len(RECORDS)


def test_too_few_passages_for_noise_are_one_sentence():
    words = "--noise all: the other questions have only 0 passages that can replace 1 of question 0"
    refused(words, with_noise, [record("a", "x"), record("b", "x")], "all", 0)


# ------------------------------------------------------------------------------------------------
# Other questions


def test_other_questions_are_asked_with_each_questions_adapters(copy, monkeypatch):
    """F1 is theirs, and KL is that of one prompt at a time through the sum of the deltas."""
    for method in ("closed_book", "prag"):
        answer(method, "--locality", WARM)
    base, rows = (rows_of(copy, f"{name}_locality=warmup") for name in ("closed_book", "prag"))
    warm = {one["question"]: one["answer"] for one in json.loads(Path(WARM).read_text())}
    assert [row["question"] for row in rows] == [row["question"] for row in base]
    assert len({row["question"] for row in rows}) == 4 and "kl" not in base[0]
    assert all(row["answer"] == warm[row["question"]] for row in rows)
    bank, tokenizer = demo_bank(), load_tokenizer(MODEL)
    encoder = PromptEncoder(tokenizer, load_prompts("demo", "demo", False), False, 500)
    for did, row in enumerate(rows):
        ids = torch.tensor([encoder.question(row["question"], [])])
        places = [copy / ADAPTERS / f"data_{did}/passage_{pid}" for pid in range(3)]
        own = [load_adapter(place, bank.shapes(2)) for place in places]
        with torch.no_grad():
            bank.load([weighted(own, [1.0] * 3)])
            adapted = bank.model(ids).logits[0, -1].double().log_softmax(-1)
            bank.clear()
            alone = bank.model(ids).logits[0, -1].double().log_softmax(-1)
        kl = float((alone.exp() * (alone - adapted)).sum())
        assert row["kl"] == pytest.approx(kl, rel=1e-3, abs=1e-6) and kl > 1e-3
    answer("prag", "--locality", WARM)  # complete
    with edited(copy / DATA) as records:
        questions = [{"question": one["question"], "answer": "x"} for one in records]
    (copy / "own.json").write_text(json.dumps(questions))
    refused(
        "asks nothing but the data set's own", answer, "prag", "--locality", str(copy / "own.json")
    )
    refused("does not exist", answer, "prag", "--locality", str(copy / "none.json"))
    (copy / "warmup.json").write_text(json.dumps([{"question": "Else?", "answer": "x"}]))
    other = str(copy / "warmup.json")  # has the same folder
    refused("made with locality = ", answer, "prag", "--locality", other)


def test_other_questions_are_drawn_without_replacement_until_there_are_none(tmp_path):
    path = tmp_path / "some.json"
    others = [{"question": f"Q{i}?", "answer": f"A{i}", "qid": "7"} for i in range(3)]
    path.write_text(json.dumps([*others, {"question": "Who?", "answer": "x"}]))
    records = [record("Orr", "a", test_id=i, type="t") for i in range(5)]
    made = with_other_questions(records, path, 3)
    asked = [one["question"] for one in made]
    assert sorted(asked[:3]) == ["Q0?", "Q1?", "Q2?"] and asked[3:] == asked[:2]
    for did, one in enumerate(made):
        assert one["answer"] == one["question"].replace("Q", "A")[:-1] and one["test_id"] == did
        assert one["augment"] == records[did]["augment"] and "type" not in one
    assert made == with_other_questions(records, path, 3)
    assert any(with_other_questions(records, path, seed) != made for seed in range(9))


# ------------------------------------------------------------------------------------------------
# Counterfactual passages


def augmented(question, answers, *texts, pairs=()) -> dict:
    """A record of an augmented file by one model: each text is a passage and its rewrite."""
    one = record(answers, *texts, question=question, qid="q")
    for entry in one["augment"]:
        entry |= {"id": texts[0], "m_rewrite": f"So: {entry['passage']}"}
        entry["m_qa"] = [{"question": q, "answer": a, "full_answer": f"{a}!"} for q, a in pairs]
    return one


def test_a_false_answer_stands_in_every_text_for_the_right_one():
    records = [
        augmented(
            "When was Ada Orr born?", ["1921", "the year 1921"],
            "Orr was born in 1921. In the year 1921.", "Orr, not 19210",
            pairs=[("Who was born in 1921?", "Orr"), ("When?", "1921")],
        ),
        augmented("How many when?", "3", "3 ships"),
        augmented("When was Ulm born?", "1895", "In 1895 Ulm"),
        augmented("What colour has it?", "Red", "red it is", "RED. Red!"),
        augmented("What colour has she?", "Blue", "Blue."),
        augmented("Is it so?", "yes", "yes it is"),
        augmented("Who wrote it?", "Rhee", "nobody"),
        augmented("Who?", "J. Vo", "J Vo, or J. Vo"),  # a trace is left
    ]  # fmt: skip
    made = {one["question"]: one for one in counterfactual.counterfactual(records, 0)}
    assert made.keys() == {one["question"] for one in records[:5]}
    born = made["When was Ada Orr born?"]
    assert born["answer"] == "1895" and born["original"] == ["1921", "the year 1921"]
    assert born["passages"] == ["Orr was born in 1895. In 1895.", "Orr, not 19210"]
    [first, second] = born["augment"]
    assert first["m_rewrite"] == "So: Orr was born in 1895. In 1895."
    assert first["m_qa"][0] == {
        "question": "Who was born in 1895?",
        "answer": "Orr",
        "full_answer": "Orr!",
    }
    assert first["m_qa"][1] == {"question": "When?", "answer": "1895", "full_answer": "1895!"}
    assert second["passage"] == "Orr, not 19210" and first["id"] == records[0]["passages"][0]
    assert (born["qid"], born["test_id"], first["pid"], first["score"]) == ("q", 0, 0, 9)
    assert made["What colour has it?"]["passages"] == ["Blue it is", "Blue. Blue!"]
    assert records[0]["passages"][0].startswith("Orr was born in 1921")
    again = counterfactual.counterfactual(records, 0)
    assert again == list(made.values())


def test_a_counterfactual_data_type_goes_through_the_stages(copy, capsys):
    run(counterfactual, "--dataset", "demo", "--data_type", "dev")
    assert "4 of 4 questions have a false answer" in capsys.readouterr().out
    flags = [*ALL, "--data_type", "dev_counterfactual"]
    run(encode, *flags)
    assert "12 passages" in capsys.readouterr().out
    run(inference, *flags, "--inference_method", "icl", "--max_new_tokens", "12")
    rows = json.loads((copy / RESULTS / "icl/dev_counterfactual/predict.json").read_text())
    records = json.loads((copy / DATA.replace("dev", "dev_counterfactual")).read_text())
    assert [row["answer"] for row in rows] == [one["answer"] for one in records]
    assert any(row["em"] for row in rows)  # what the passages say now
    for more in ("--neighbours 2", "--shared 2"):
        refused("false passages: their neigh", run, encode, *flags, *more.split())
    (copy / DATA.replace("dev", "none")).write_text(
        json.dumps([augmented("Is it?", "no", "no", pairs=[("A?", "b")])])
    )
    words = "no question of .*none.json has an answer that can be replaced"
    refused(words, run, counterfactual, "--dataset", "demo", "--data_type", "none")
