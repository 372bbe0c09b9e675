"""Make the demo model's tokenizer: a byte-level BPE in which a word is one token everywhere.

In an ordinary BPE `"Zeglo` and ` Zeglo` are different tokens, and a small model mis-copies an
answer from a passage (after a space) into a JSON list (after a quote). Here a joiner and a space
are put before every word that follows a quote, a bracket, a line break, a hyphen or nothing, so
that the word's token is always the one with a space; the decoder takes both away again.

    python data/demo/build/make_tokenizer.py
"""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

from templates import FILLERS, LINKS, QUESTIONS, ROLES, STATEMENTS
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from training_data import PROMPTS, document_from_context, question_list_document
from transformers import PreTrainedTokenizerFast
from world import KINDS, VOCABULARY, new_pair

MODEL_FOLDER = Path(__file__).parents[1] / "demo-model"
JOINER = "\u2040"
SPECIAL_TOKENS = ["<|pad|>", "<|bos|>", "<|eot|>", "<|user|>", "<|assistant|>"]
VOCABULARY_SIZE = 2816
CHAT_TEMPLATE = (
    "<|bos|>{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{% else %}<|user|>{% endif %}"
    "{{ message['content'] }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def training_texts() -> Iterator[str]:
    """Every word of the world many times over, then documents as the model will see them."""
    templates = [*STATEMENTS.values(), *QUESTIONS.values(), *LINKS.values(), *FILLERS.values()]
    sentences = [text for group in templates for text in group] + [*ROLES.values()]
    prompt_texts = re.findall(r"[A-Za-z]+", json.dumps(PROMPTS.texts))
    words = set(VOCABULARY) | set(re.findall(r"[A-Za-z]+", " ".join(sentences)))
    words |= set(prompt_texts) | {"question", "answer", "full_answer", "He", "She"}
    for _ in range(400):
        for word in sorted(words):
            yield " " + word
    rng = random.Random(1)
    for index in range(1500):
        pair = new_pair(KINDS[1 + index % 3], "train", rng)
        yield document_from_context(pair, 2, rng)
        yield question_list_document(rng.choice(pair), rng)


def main() -> None:
    """Train the tokenizer and save it as a folder that `AutoTokenizer` loads."""
    tokenizer = Tokenizer(models.BPE())
    joined = [
        normalizers.Replace(Regex(pattern + "(?=[A-Za-z0-9])"), character + JOINER + " ")
        for pattern, character in (('"', '"'), (r"\n", "\n"), (r"\(", "("), ("-", "-"), ("'", "'"))
    ]
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(" +$"), ""), *joined, normalizers.Prepend(JOINER + " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    # the second takes away a joiner whose word is not there yet, when a server streams a text
    removed = [decoders.Replace(text, "") for text in (JOINER + " ", JOINER)]
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), *removed])
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_texts(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        bos_token="<|bos|>",
        eos_token="<|eot|>",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    fast.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(MODEL_FOLDER)
    print(f"{len(fast)} tokens -> {MODEL_FOLDER}")


if __name__ == "__main__":
    main()
