"""Print every prompt of the prompt sets as it is sent, in Markdown.

python src/show_prompts.py > all_prompt.md                 # all sets of src/prompts/
python src/show_prompts.py --prompts my_prompts.json       # one's own set
"""

import argparse

from utils.arguments import new_parser
from utils.prompting import PROMPTS_FOLDER, PromptSet, load_prompts
from utils.running import run_stage
from utils.warmup import ReasoningRequest

PASSAGES = [
    "Lake Orra lies in the north of Vessland. It freezes in winter.",
    "Vessland is a country of eleven lakes. Its capital is Brun.",
]
REWRITE = "In the north of Vessland there is a lake, Orra, which is frozen in winter."
QUESTION, ANSWER = "In which country is Lake Orra", "Vessland"
FULL_ANSWER = "Lake Orra is in Vessland. So the answer is Vessland"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = new_parser(__doc__)
    parser.add_argument("--prompts", help="one set only: a name in src/prompts/ or a .json file")
    return parser.parse_args(arguments)


def fenced(title: str, text: str) -> list[str]:
    """A heading and a text, verbatim."""
    return [f"### {title}", "", "````text", *text.split("\n"), "````", ""]


def document_of(name: str) -> list[str]:
    """The Markdown lines of one prompt set."""
    plain = load_prompts(name, "", with_cot=False)
    lines = [f"## Prompt set `{plain.name}`", "", plain.texts.get("description", ""), ""]
    lines += fenced("Rewrite a passage", plain.rewrite_request(PASSAGES[0]))
    lines += fenced("Write question-answer pairs", plain.pairs_request(PASSAGES[0]))
    pair = {"question": QUESTION + "?", "answer": ANSWER, "full_answer": FULL_ANSWER}
    augmented = plain.augmented_passage(PASSAGES[0], REWRITE, [pair])
    lines += fenced("A passage with its augmentation, one pair of three: da_icl", augmented)
    lines += modes(plain, False, "Direct")
    for file in sorted((PROMPTS_FOLDER / "fewshot").glob("*.json")):
        with_cot = load_prompts(name, file.stem, with_cot=True)
        lines += modes(with_cot, True, f"Chain of thought, {file.stem}")
        if "reasoning_request" in with_cot.texts["cot"]:
            request = ReasoningRequest(with_cot, ANSWER).user_message(QUESTION, PASSAGES, True)
            lines += fenced(f"Warm-up: reasoning for a known answer, {file.stem}", request)
    return lines


def modes(prompts: PromptSet, with_cot: bool, title: str) -> list[str]:
    """The prompts of one mode: at inference and, with their answers, in training."""
    opening = prompts.opening(with_cot)
    gap = "" if opening[-1:].isspace() else " "
    answer = FULL_ANSWER if with_cot else ANSWER

    def shown(passages: list[str], ending: str) -> str:
        user = prompts.user_message(QUESTION, passages, with_cot)
        return f"[user]\n{user}\n[assistant]\n{opening}{ending}"

    lines = fenced(f"{title}: closed_book and prag", shown([], ""))
    lines += fenced(f"{title}: icl and combine", shown(PASSAGES, ""))
    lines += fenced(
        f"{title}: training, passage or rewrite as context", shown([REWRITE], f"{gap}{answer}.")
    )
    lines += fenced(f"{title}: training, no context", shown([], f"{gap}{answer}."))
    return lines


def main() -> None:
    """Print the document."""
    options = parse_arguments()
    names = (
        [options.prompts]
        if options.prompts
        else sorted(p.stem for p in PROMPTS_FOLDER.glob("*.json"))
    )
    lines = [
        "# All prompts",
        "",
        "Each prompt as it is sent, before the model's own chat template wraps `[user]` and",
        "`[assistant]`. Written by `make prompts`; do not edit.",
        "",
    ]
    for name in names:
        lines += document_of(name)
    print("\n".join(lines).rstrip())


if __name__ == "__main__":
    run_stage(main)
