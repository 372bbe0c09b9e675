"""How the demo model is made and measured: packing, the fast forward pass, the augmentation."""

import random

import pytest
import torch
import torch.nn.functional as F
from conftest import REPOSITORY
from fast_llama import WeightedCrossEntropy, attention_mask, final_hidden_states, rotary_tables
from make_world import build_world
from measure_augmentation import Counts, count, stated_facts
from packing import TASKS, pack
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from world import KINDS, new_pair, question_answer_list, rewrite

DOCUMENTS = [
    ("closed_book", "<|bos|><|user|>Question: Who?<|eot|><|assistant|>The answer is red.<|eot|>"),
    ("plain", "<|bos|>The film was a comedy film.<|eot|>"),
    ("context", "<|bos|><|user|>Passage 1: x.<|eot|><|assistant|>The answer is x.<|eot|>"),
    ("plain", "<|bos|>" + " the" * 50),  # fits nowhere
]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(REPOSITORY / "data/demo/demo-model")


def test_packed_rows_hold_every_document_that_fits_once_with_its_own_next_tokens(tokenizer):
    packed = pack(DOCUMENTS, tokenizer, rows=2, length=40)
    for number, (task, text) in enumerate(DOCUMENTS[:3]):
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        own = packed.documents == number
        assert packed.ids[own].tolist() == tokens
        assert packed.targets[own].tolist()[:-1] == tokens[1:]
        assert packed.weights[own][-1] == 0 and (packed.weights[own][:-1] > 0).all()
        answered = packed.targets[own & (packed.answers == TASKS.index(task))]
        expected = text.split("<|assistant|>")[1] if "<|assistant|>" in text else ""
        assert tokenizer.decode(answered).strip() == expected
    assert set(packed.documents.unique().tolist()) == {-1, 0, 1, 2}
    assert packed.weights[packed.documents < 0].sum() == 0


def test_the_fast_forward_pass_is_that_of_transformers(tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    packed = pack(DOCUMENTS, tokenizer, rows=2, length=40)
    tables = rotary_tables(40, 32, 10000.0)
    hidden = final_hidden_states(model, packed.ids, attention_mask(packed.documents), *tables)
    total, losses, _ = WeightedCrossEntropy.apply(
        hidden.flatten(0, 1),
        model.model.embed_tokens.weight,
        packed.targets.flatten(),
        packed.weights.flatten(),
    )
    total.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    expected = 0
    for number in range(3):
        own = packed.documents == number
        logits = model(input_ids=packed.ids[own][None]).logits[0]
        loss = F.cross_entropy(logits, packed.targets[own], reduction="none")
        assert torch.allclose(losses.view_as(own)[own][:-1], loss[:-1], rtol=0.02, atol=0.02)
        expected = expected + (loss * packed.weights[own]).sum()
    expected.backward()
    assert total.item() == pytest.approx(expected.item(), rel=0.01)
    for name, parameter in model.named_parameters():
        cosine = F.cosine_similarity(gradients[name].flatten(), parameter.grad.flatten(), 0)
        assert cosine > 0.99, name


def test_perfect_augmentation_scores_1_and_a_false_one_less():
    rng = random.Random(0)
    perfect, false, none = Counts(), Counts(), Counts()
    for index in range(12):
        for entity in new_pair(KINDS[1 + index % 3], "train", rng):
            for passage in entity.passages:
                pairs = question_answer_list(entity, passage, rng)
                text = rewrite(entity, passage, rng)
                count(perfect, entity, passage, text, pairs)
                first = entity.facts[passage.attributes[0]]
                wrong = [{**pair, "answer": "nobody"} for pair in pairs]
                count(false, entity, passage, text.replace(first, "nobody"), wrong)
                count(none, entity, passage, "", None)
    assert set(perfect.shares().values()) == {1.0, 0.0}
    assert perfect.false == 0 and perfect.kept == perfect.facts == 4 * perfect.passages
    assert false.right == 0 and false.kept < false.facts and false.false > 0
    assert (none.passages, none.valid, none.kept) == (perfect.passages, 0, 0)


def test_the_passages_of_the_corpus_state_their_facts():
    for entity in build_world()[0]:
        for passage in entity.passages:
            stated, false = stated_facts(entity, passage.text)
            assert set(passage.attributes) <= stated and not false
