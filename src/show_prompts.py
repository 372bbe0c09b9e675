"""Print every prompt of the prompt sets as it is sent, in Markdown.

python src/show_prompts.py > all_prompt.md                 # all sets of src/prompts/
python src/show_prompts.py --prompts my_prompts.json       # your own set
"""

import argparse

from utils.arguments import new_parser
from utils.datasets import PAPER
from utils.prompting import JUDGE, PROMPTS_FOLDER, PromptSet, load_prompts
from utils.running import run_stage
from utils.warmup import ReasoningRequest

PASSAGES = [
    "Lake Orra lies in the north of Vessland. It freezes in winter.",
    "Vessland is a country of eleven lakes. Its capital is Brun.",
]
REWRITE = "In the north of Vessland there is a lake, Orra, which is frozen in winter."
QUESTION, ANSWER = "In which country is Lake Orra", "Vessland"
FULL_ANSWER = "Lake Orra is in Vessland. So the answer is Vessland"
BEGINNING = """# All prompts

Each prompt as it is sent, before the model's own chat template wraps `[user]` and
`[assistant]`. Written by `make prompts`; do not edit.

"""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = new_parser(__doc__)
    parser.add_argument("--prompts", help="one set only: a name in src/prompts/ or a .json file")
    return parser.parse_args(arguments)


def fenced(title: str, text: str) -> str:
    """A heading and a text, verbatim."""
    return f"### {title}\n\n````text\n{text}\n````\n\n"


def document_of(name: str) -> str:
    """The Markdown of one prompt set."""
    plain = load_prompts(name, "", with_cot=False)
    pair = {"question": QUESTION + "?", "answer": ANSWER, "full_answer": FULL_ANSWER}
    augmented = plain.augmented_passage(PASSAGES[0], REWRITE, [pair])
    text = f"## Prompt set `{plain.name}`\n\n{plain.texts.get('description', '')}\n\n"
    text += fenced("Rewrite a passage", plain.request("rewrite", PASSAGES[0]))
    pairs_request = plain.request("question_answer_pairs", PASSAGES[0])
    text += fenced("Write question-answer pairs", pairs_request)
    text += fenced("A passage with its augmentation, one pair of three: da_icl", augmented)
    if JUDGE in plain.texts:
        text += fenced("A judge's verdict", plain.judgement(QUESTION, [ANSWER], FULL_ANSWER))
    text += "".join(modes(plain, False, "Direct", ANSWER))
    for file in sorted((PROMPTS_FOLDER / "fewshot").glob("*.json")):
        with_cot, whole = load_prompts(name, file.stem, with_cot=True), file.stem in PAPER
        cot = modes(with_cot, True, f"Chain of thought, {file.stem}", FULL_ANSWER)
        text += "".join(cot if whole else cot[:1])  # of the others the examples are new, no more
        if whole and "reasoning_request" in with_cot.texts["cot"]:
            request = ReasoningRequest(with_cot, ANSWER).user_message(QUESTION, PASSAGES, True)
            text += fenced(f"Warm-up: reasoning for a known answer, {file.stem}", request)
    return text


def modes(prompts: PromptSet, with_cot: bool, title: str, answer: str) -> list[str]:
    """The prompts of one mode: at inference and, with their answers, in training."""
    opening = prompts.opening(with_cot)
    trained = f"{'' if opening[-1:].isspace() else ' '}{answer}."
    shown = (
        ("closed_book and prag", [], ""),
        ("icl and combine", PASSAGES, ""),
        ("training, passage or rewrite as context", [REWRITE], trained),
        ("training, no context", [], trained),
    )
    return [
        fenced(
            f"{title}: {use}",
            f"[user]\n{prompts.user_message(QUESTION, passages, with_cot)}\n"
            f"[assistant]\n{opening}{ending}",
        )
        for use, passages, ending in shown
    ]


def main() -> None:
    """Print the document."""
    one = parse_arguments().prompts
    names = [one] if one else sorted(file.stem for file in PROMPTS_FOLDER.glob("*.json"))
    print((BEGINNING + "".join(map(document_of, names))).rstrip())


if __name__ == "__main__":
    run_stage(main)
