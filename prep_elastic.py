r"""Build the BM25 index that `src/augment.py` retrieves passages from.

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

from utils.arguments import new_parser, positive_integer
from utils.files import relative
from utils.layout import index_folder
from utils.retrieval.elasticsearch import add_elasticsearch_flags, connection_of
from utils.retrieval.elasticsearch_load import load_index
from utils.retrieval.embedded import build_index
from utils.running import run_stage


def parse_arguments() -> argparse.Namespace:
    """The flags of this script."""
    parser = new_parser(__doc__)
    parser.add_argument(
        "--data_path",
        type=Path,
        required=True,
        help="corpus file, .tsv or .tsv.gz with columns id, text, title (required)",
    )
    parser.add_argument("--index_name", default="wiki", help="name of the index")
    parser.add_argument(
        "--engine",
        choices=["embedded", "elasticsearch"],
        default="embedded",
        help="search engine; embedded keeps the index in a folder",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace an index that has this name already (not set: stop with an error)",
    )
    group = add_elasticsearch_flags(parser)
    group.add_argument(
        "--number_of_shards",
        type=positive_integer,
        default=1,
        help="parts of the index, which can stand on several machines",
    )
    group.add_argument(
        "--threads", type=positive_integer, default=4, help="requests sent at the same time"
    )
    return parser.parse_args()


def main() -> None:
    """Build the index and say what to run next."""
    options = parse_arguments()
    start = time.perf_counter()
    if options.engine == "embedded":
        folder = index_folder(options.index_name)
        rows = build_index(options.data_path, folder, options.overwrite)
        name, place, engine = folder.name, relative(folder), ""
    else:
        connection = connection_of(options)
        name, place = options.index_name, connection.url
        engine = " --engine elasticsearch"
        rows = load_index(
            options.data_path,
            connection,
            name,
            options.number_of_shards,
            options.threads,
            options.overwrite,
        )
    seconds = time.perf_counter() - start
    print(
        f"{rows} rows indexed ({options.engine}) in {place} in {seconds:.1f} s, "
        f"{rows / seconds:.0f} rows/s"
    )
    print(
        "next: python src/augment.py --model_name MODEL --dataset DATASET --data_path DATA_PATH "
        f"--index_name {name}{engine}"
    )


if __name__ == "__main__":
    run_stage(main)
