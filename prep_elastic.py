r"""Build the index that `src/augment.py` retrieves passages from.

The corpus is a TSV `id<TAB>text<TAB>title` with that header, plain or `.gz`. The embedded engine
needs no server and writes to `index/{index_name}`:

    python prep_elastic.py --data_path data/demo/corpus.tsv --index_name demo
    python prep_elastic.py --data_path data/dpr/psgs_w100.tsv.gz --index_name wiki

An Elasticsearch 8 server takes the same corpus; searches use it with the same flags:

    python prep_elastic.py --engine elasticsearch --data_path data/dpr/psgs_w100.tsv.gz \
        --index_name wiki --number_of_shards 4 --threads 8 --es_url http://localhost:9200
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from utils.arguments import new_parser
from utils.retrieval import ENGINES
from utils.running import run_stage


def parse_arguments() -> argparse.Namespace:
    """The flags of this script and of every engine."""
    parser = new_parser(__doc__)
    parser.add_argument(
        "--data_path",
        type=Path,
        required=True,
        help="corpus file, .tsv or .tsv.gz with columns id, text, title (required)",
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


def main() -> None:
    """Build the index and say what to run next."""
    options = parse_arguments()
    start = time.perf_counter()
    rows, where = ENGINES[options.engine].build(options.data_path, options)
    seconds = time.perf_counter() - start
    engine = "" if options.engine == "embedded" else f" --engine {options.engine}"
    done = f"the index {options.index_name} of this corpus exists already in {where}"
    if rows:
        done = f"{rows} rows indexed ({options.engine}) in {where} in {seconds:.1f} s, "
        done += f"{rows / seconds:.0f} rows/s"
    print(
        f"{done}\nnext: python src/augment.py --model_name MODEL --dataset DATASET --data_path "
        f"DATA_PATH --index_name {options.index_name}{engine}"
    )


if __name__ == "__main__":
    run_stage(main)
