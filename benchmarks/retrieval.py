"""Measure the embedded retrieval engine on a generated corpus, beside bm25s where that fits.

    python benchmarks/retrieval.py --rows 200000
    python benchmarks/retrieval.py --rows 1000000 --bm25s       # pip install bm25s PyStemmer

The corpus imitates passages of 100 words: a vocabulary that grows with the corpus, word frequencies
after Zipf, titles of one to four words, one passage in five with characters beyond ASCII. Questions
take 6 to 12 words from one passage, common ones included. Every measurement runs in its
own process; the result goes to `benchmarks/results/retrieval_{rows}.json`.
"""

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from machine import machine

from utils.arguments import new_parser, positive_integer
from utils.files import write_json
from utils.retrieval.embedded import EmbeddedIndex, build_index
from utils.running import run_stage

REPOSITORY = Path(__file__).resolve().parents[1]
TOPK = 13  # what augment.py asks for: 3 and 10 to spare
QUESTIONS = 1000
COMMON_WORDS = "the of and in to a was is for on as with by he at from that it his are".split()


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--rows", type=positive_integer, default=200_000, help="passages")
    add("--bm25s", action="store_true", help="measure bm25s too")
    return parser.parse_args(arguments)


def main() -> None:
    """Generate the corpus, measure each engine in its own process, save."""
    options = parse_arguments()
    measured = {"build": measure_build, "search": measure_search}
    measured |= {"bm25s": measure_bm25s} if options.bm25s else {}
    with tempfile.TemporaryDirectory(prefix="retrieval_") as place:
        folder = Path(place)
        generate(folder, options.rows)
        result = {
            "rows": options.rows,
            "corpus_megabytes": round((folder / "corpus.tsv").stat().st_size / 1e6, 1),
            "topk": TOPK,
            "machine": machine(),
            "versions": {name: version(name) for name in ("tantivy", "nltk", "regex")},
        }
        for name, measure in measured.items():
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                result[name] = process.submit(measure, folder).result()
            print(name, result[name], flush=True)
    write_json(REPOSITORY / f"benchmarks/results/retrieval_{options.rows}.json", result)


def generate(folder: Path, rows: int) -> None:
    """`corpus.tsv` and `questions.json` in `folder`, the same for the same number of rows."""
    random = np.random.default_rng(0)
    # Heaps' law with the constants of English encyclopedia text
    vocabulary = words(random, int(30 * (rows * 100) ** 0.55))
    weights = 1 / (np.arange(len(vocabulary)) + 2.7) ** 1.05
    cumulative = np.cumsum(weights / weights.sum())
    asked = set(random.choice(rows, size=min(rows, QUESTIONS), replace=False).tolist())
    questions = []
    with open(folder / "corpus.tsv", "w", encoding="utf-8") as file:
        file.write("id\ttext\ttitle\n")
        for row in range(rows):
            drawn = vocabulary[np.searchsorted(cumulative, random.random(104))].tolist()
            title, text = drawn[: 1 + row % 4], drawn[4:]
            text = [text[0].capitalize(), *text[1:60], text[60] + ",", *text[61:99], text[99] + "."]
            if row % 5 == 0:
                text[30] += "\u2013\u00e9"
            file.write(f"{row}\t{' '.join(text)}\t{' '.join(title).title()}\n")
            if row in asked:
                chosen = random.choice(drawn, size=random.integers(6, 13), replace=False)
                questions.append(" ".join(chosen) + "?")
    write_json(folder / "questions.json", questions)


def words(random: np.random.Generator, count: int) -> np.ndarray:
    """`count` different words, the most common English ones first."""
    letters = np.array(list("etaoinsrhldcumfpgwybvkxjqz"))
    chances = 1 / (np.arange(26) + 3)
    endings = ["", "", "", "s", "ed", "ing", "ly", "tion", "ness", "er"]
    found = dict.fromkeys(COMMON_WORDS)
    while len(found) < count:
        sizes = random.integers(2, 9, size=count)
        drawn = random.choice(letters, size=(count, 8), p=chances / chances.sum())
        for size, row, ending in zip(sizes, drawn, random.integers(0, 10, size=count), strict=True):
            found["".join(row[:size]) + endings[ending]] = None
    return np.array(list(found)[:count])


def measure_build(folder: Path) -> dict:
    """Seconds and peak memory of `build_index`; children are its worker processes."""
    start = time.perf_counter()
    build_index(folder / "corpus.tsv", folder / "index", overwrite=True)
    seconds = time.perf_counter() - start
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    size = sum(file.stat().st_size for file in (folder / "index").iterdir())
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(sum(u.ru_utime + u.ru_stime for u in (own, children)), 1),
        "peak_megabytes_main_process": round(own.ru_maxrss / 1e3),
        "peak_megabytes_largest_worker": round(children.ru_maxrss / 1e3),
        "workers": len(os.sched_getaffinity(0)),
        "index_megabytes": round(size / 1e6, 1),
    }


def measure_search(folder: Path) -> dict:
    """Milliseconds of opening, and of each question alone."""
    questions = json.loads((folder / "questions.json").read_text())
    start = time.perf_counter()
    index = EmbeddedIndex(folder / "index")
    opening = time.perf_counter() - start
    index.search(questions[:50], TOPK)  # the operating system reads the files
    return {
        "open_milliseconds": round(1000 * opening, 1),
        **timed(lambda question: index.search([question], TOPK), questions),
        "peak_megabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
    }


def measure_bm25s(folder: Path) -> dict:
    """bm25s with its own English tokens over title and text as one field."""
    import bm25s
    import Stemmer

    questions = json.loads((folder / "questions.json").read_text())
    stemmer = Stemmer.Stemmer("english")
    start = time.perf_counter()
    with open(folder / "corpus.tsv", encoding="utf-8") as file:
        texts = [line.split("\t", 1)[1] for line in file][1:]
    tokens = bm25s.tokenize(texts, stopwords="en", stemmer=stemmer, show_progress=False)
    engine = bm25s.BM25(k1=1.2, b=0.75)
    engine.index(tokens, show_progress=False)
    seconds = time.perf_counter() - start

    def search(question: str) -> None:
        asked = bm25s.tokenize(question, stopwords="en", stemmer=stemmer, show_progress=False)
        engine.retrieve(asked, k=TOPK, show_progress=False)

    search(questions[0])
    return {
        "seconds": round(seconds, 1),
        **timed(search, questions),
        "peak_megabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
        "version": version("bm25s"),
    }


def timed(search, questions: list[str]) -> dict:
    """Mean, median and 95th percentile of milliseconds per question."""
    milliseconds = []
    for question in questions:
        start = time.perf_counter()
        search(question)
        milliseconds.append(1000 * (time.perf_counter() - start))
    return {
        "questions": len(questions),
        "mean_milliseconds": round(float(np.mean(milliseconds)), 2),
        "median_milliseconds": round(float(np.median(milliseconds)), 2),
        "p95_milliseconds": round(float(np.percentile(milliseconds, 95)), 2),
    }


if __name__ == "__main__":
    run_stage(main)
