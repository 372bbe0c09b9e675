"""Coverage-guided fuzzing of what reads files and model output: a value or an `InputError`.

    .venv/bin/pip install atheris
    .venv/bin/python tests/fuzz_parsers.py -max_total_time=300 -max_len=4096 -timeout=5

The flags are libFuzzer's; a folder as a further argument keeps the inputs that found new code.
Any other exception, and any input that takes longer than `-timeout` seconds, stops it with the
input in a file `crash-...` or `timeout-...`; give that file as the argument to see it again.
"""

import os
import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
with atheris.instrument_imports(include=["utils", "json_repair", "json.decoder", "csv"]):
    import tqdm

    from utils import journal, metrics, running, warmup
    from utils import questions as qa_data
    from utils.augmentation import records as augmented
    from utils.prompting import load_prompts
    from utils.retrieval import corpus

FOLDER = Path(tempfile.mkdtemp())
RAW = ("dev.json", "id_aliases.json", "hotpot_dev_distractor_v1.json", "popQA.tsv")
FILES = [FOLDER / name for name in (*RAW, "ComplexWebQuestions_dev.json", "own.json", "c.tsv")]
SOURCES = [(name, FOLDER) for name in qa_data.TYPES] + [("own", FOLDER / "own.json")]
SEEDS = Path(__file__).parent / "data"


def target(data: bytes) -> None:
    """Everything that reads, on one input; its first byte chooses."""
    choice, data = (data[0] if data else 0) % 6, data[1:]
    if choice == 0:
        text = data.decode(errors="surrogateescape")
        pairs = augmented.parse_pairs(text)
        assert pairs is None or len(pairs) == 3
        for answer in (text, text[:20]):
            scores = metrics.score(metrics.extract_answer(text, True), [answer, ""])
            assert 0 <= scores["em"] <= scores["f1"] <= 1
        return
    for file in FILES[:6] if choice == 1 else FILES[5:]:
        file.write_bytes(data)
    try:
        if choice == 1:
            for dataset, path in SOURCES:
                qa_data.load_questions(dataset, path)
        elif choice == 2:
            augmented._read_augmented_file(FOLDER / "own.json")
        elif choice == 3:
            list(corpus.read_corpus(FOLDER / "c.tsv"))
        elif choice == 4:
            warmup.read_warmup_data(FOLDER / "own.json", True)
            load_prompts(str(FOLDER / "own.json"), "demo", False)
        else:
            (FOLDER / "own.json.0").write_bytes(data)
            journal.Journal(FOLDER / "own.json", {}).close()
    except running.InputError as error:
        assert str(error).strip()


def main() -> None:
    """Start from the test data of the loaders, and from a list as a model writes it."""
    os.environ["TQDM_DISABLE"] = "1"
    corpus.tqdm = lambda **_: tqdm.tqdm(disable=True)
    seeds = FOLDER / "seeds"
    seeds.mkdir()
    files = [path for path in sorted(SEEDS.rglob("*")) if path.is_file()]
    for number, path in enumerate(files):
        for choice in range(6):
            head = path.read_bytes()[:3000]
            (seeds / f"{number}-{choice}").write_bytes(bytes([choice]) + head)
    pair = b'{"question": "Q?", "answer": null, "full_answer": ["a", 1]}'
    (seeds / "list").write_bytes(b"\x00```json\n[" + b", ".join([pair] * 3) + b"]\n```")
    # in-process output would hide the fuzzer's own
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    atheris.Setup([*sys.argv, str(seeds)], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
