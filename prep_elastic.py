r"""Build the index that `src/augment.py` retrieves passages from.

The corpus is a TSV `id<TAB>text<TAB>title` with that header, plain or `.gz`. The embedded engine
needs no server and writes to `index/{index_name}`:

    python prep_elastic.py --data_path data/demo/corpus.tsv --index_name demo
    python prep_elastic.py --data_path data/dpr/psgs_w100.tsv.gz --index_name wiki

Without a corpus, the paragraphs that 2WikiMultihopQA, HotpotQA, MuSiQue or StrategyQA has beside
its questions become one, which is kept as `index/{index_name}.tsv`:

    python prep_elastic.py --from_contexts data/hotpotqa --index_name hotpot

So do your own documents, the .md and .txt files of a folder, in passages of 100 words:

    python prep_elastic.py --from_text ~/notes --index_name notes

An Elasticsearch 8 server takes the same corpus; searches use it with the same flags:

    python prep_elastic.py --engine elasticsearch --data_path data/dpr/psgs_w100.tsv.gz \
        --index_name wiki --number_of_shards 4 --threads 8 --es_url http://localhost:9200
"""

import argparse
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from utils.arguments import new_parser
from utils.files import writing_file
from utils.layout import index_folder, made_corpus
from utils.questions import load_contexts
from utils.retrieval import ENGINES
from utils.retrieval.corpus import write_corpus
from utils.retrieval.texts import load_texts
from utils.running import run_stage


def parse_arguments() -> argparse.Namespace:
    """The flags of this script and of every engine."""
    parser = new_parser(__doc__)
    corpus = parser.add_mutually_exclusive_group(required=True)
    corpus.add_argument(
        "--data_path",
        type=Path,
        help="corpus file, .tsv or .tsv.gz with columns id, text, title (not set: --from_contexts "
        "or --from_text)",
    )
    corpus.add_argument(
        "--from_contexts",
        type=Path,
        help="folder with the files of 2wikimultihopqa, hotpotqa, musique or strategyqa, whose "
        "paragraphs become the corpus (not set: --data_path or --from_text)",
    )
    corpus.add_argument(
        "--from_text",
        type=Path,
        help="folder whose .md and .txt files become the corpus, also those in folders below it "
        "(not set: --data_path or --from_contexts)",
    )
    parser.add_argument("--index_name", default="wiki", help="name of the index")
    engines = "search engine; embedded keeps the index in a folder"
    parser.add_argument("--engine", choices=list(ENGINES), default="embedded", help=engines)
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace an index that has this name already (not set: refuse to replace one)",
    )
    for engine in ENGINES.values():
        engine.add_flags(parser, building=True)
    return parser.parse_args()


@contextmanager
def opened_corpus(options: argparse.Namespace) -> Iterator[tuple[Path, str]]:
    """The corpus's file, and the next command's words of what is written about. One made from
    contexts or texts is kept if the block, which indexes it, ends well."""
    name = options.index_name
    if options.data_path:
        about = f"--dataset DATASET --passages {name}"
        about += f", or about questions: --data_path QUESTIONS --index_name {name}"
        yield options.data_path, about
        return
    if options.from_text:
        passages, about = load_texts(options.from_text), f"--dataset {name} --passages {name}"
    else:
        dataset, passages = load_contexts(options.from_contexts)
        about = f"--dataset {dataset} --data_path {shlex.quote(str(options.from_contexts))} "
        about += f"--index_name {name}"
    with writing_file(made_corpus(index_folder(name))) as corpus:
        write_corpus(corpus, passages)
        yield corpus, about


def main() -> None:
    """Build the index and say what to run next."""
    options = parse_arguments()
    start = time.perf_counter()
    with opened_corpus(options) as (corpus, about):
        rows, where = ENGINES[options.engine].build(corpus, options)
    seconds = time.perf_counter() - start
    engine = "" if options.engine == "embedded" else f" --engine {options.engine}"
    done = f"the index {options.index_name} of this corpus exists already in {where}"
    if rows:
        done = f"{rows} rows indexed ({options.engine}) in {where} in {seconds:.1f} s, "
        done += f"{rows / seconds:.0f} rows/s"
    print(f"{done}\nnext: python src/augment.py --model_name MODEL {about}{engine}")


if __name__ == "__main__":
    run_stage(main)
