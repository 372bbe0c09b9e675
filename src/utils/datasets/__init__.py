"""The published data sets: their raw files, and what makes question records of them.

Another one is a loader and one line in `DATASETS`. docs/datasets.md says of each what is taken.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from utils.datasets import multihop, single

# those of Parametric RAG (2501.15915), which the warm-up takes its records from
PAPER = ("2wikimultihopqa", "hotpotqa", "popqa", "complexwebquestions")


@dataclass(frozen=True)
class DataSet:
    """A published data set: its raw files, and how they become question records.

    `load` takes the paths of `files`, the questions' first, and gives the records in their order,
    without `test_id`. `types` are the values of "type" that are evaluated each alone, beside all
    together ("total"). With `evidence` a record also has "evidence": a list of the texts that
    support its answer, of which the warm-up makes data with reasoning. A "remark" of records is
    counted and said ("{source}" in it is filled). "all_answers" are those of `--answers all`, if
    they are more than "answer". Records without an answer are left out. `contexts` takes the same
    paths and gives title and text of each paragraph that the files hold, if they hold any.
    """

    source: str  # the URL to download it from
    files: tuple[str, ...]
    load: Callable[..., list[dict]]
    types: tuple[str, ...] = ()
    evidence: bool = False
    contexts: Callable[..., Iterator[tuple[str, str]]] | None = None


DATASETS = {
    "2wikimultihopqa": DataSet(
        "https://www.dropbox.com/s/ms2m13252h6xubs/data_ids_april7.zip?e=1",
        ("dev.json", "id_aliases.json"),
        multihop.load_hotpot,
        types=("comparison", "bridge_comparison", "inference", "compositional"),
        evidence=True,
        contexts=multihop.hotpot_contexts,
    ),
    "hotpotqa": DataSet(
        "http://curtis.ml.cmu.edu/datasets/hotpot/hotpot_dev_distractor_v1.json",
        ("hotpot_dev_distractor_v1.json",),
        multihop.load_hotpot,
        types=("bridge", "comparison"),
        evidence=True,
        contexts=multihop.hotpot_contexts,
    ),
    "popqa": DataSet(
        "https://raw.githubusercontent.com/AlexTMallen/adaptive-retrieval/main/data/popQA.tsv",
        ("popQA.tsv",),
        single.load_popqa,
    ),
    "complexwebquestions": DataSet(
        "https://www.tau-nlp.sites.tau.ac.il/compwebq",
        ("ComplexWebQuestions_dev.json",),
        single.load_complexwebquestions,
    ),
    "musique": DataSet(
        "https://github.com/StonyBrookNLP/musique",
        ("musique_ans_v1.0_dev.jsonl",),
        multihop.load_musique,
        types=("2hop", "3hop", "4hop"),
        evidence=True,
        contexts=multihop.musique_contexts,
    ),
    "strategyqa": DataSet(
        "https://storage.googleapis.com/ai2i/strategyqa/data/strategyqa_dataset.zip",
        ("strategyqa_train.json", "strategyqa_train_paragraphs.json"),
        multihop.load_strategyqa,
        evidence=True,
        contexts=multihop.strategyqa_contexts,
    ),
    "iirc": DataSet(
        "https://iirc-dataset.s3.us-west-2.amazonaws.com/iirc_train_dev.tgz",
        ("dev.json",),
        multihop.load_iirc,
        evidence=True,
    ),
    "triviaqa": DataSet(
        "https://nlp.cs.washington.edu/triviaqa/data/triviaqa-unfiltered.tar.gz",
        ("unfiltered-web-dev.json",),
        single.load_triviaqa,
    ),
    "nq_open": DataSet(
        "https://raw.githubusercontent.com/google-research-datasets/natural-questions/master/"
        "nq_open/NQ-open.dev.jsonl",
        ("NQ-open.dev.jsonl",),
        single.load_nq_open,
    ),
    "webquestions": DataSet(
        "https://nlp.stanford.edu/static/software/sempre/release-emnlp2013/lib/data/webquestions/"
        "dataset_11/webquestions.examples.test.json.bz2",
        ("webquestions.examples.test.json",),
        single.load_webquestions,
    ),
}
