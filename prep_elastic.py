"""Build the BM25 index that `src/augment.py` retrieves passages from.

The corpus is a TSV `id<TAB>text<TAB>title` with that header, plain or `.gz`. The embedded engine
needs no server and writes to `index/{index_name}`.

    python prep_elastic.py --data_path data/demo/corpus.tsv --index_name demo
    python prep_elastic.py --data_path data/dpr/psgs_w100.tsv.gz --index_name wiki
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from utils.paths import relative, run_stage
from utils.retrieval import build_index, index_folder


def parse_arguments() -> argparse.Namespace:
    """The flags of this script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data_path",
        type=Path,
        required=True,
        help="corpus file, .tsv or .tsv.gz with columns id, text, title (required)",
    )
    parser.add_argument("--index_name", default="wiki", help="name of the index (default: wiki)")
    parser.add_argument(
        "--engine",
        choices=["embedded"],
        default="embedded",
        help="search engine; embedded keeps the index in a folder (default: embedded)",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace an index that has this name already (default: off, stop with an error)",
    )
    return parser.parse_args()


def main() -> None:
    """Build the index and say what to run next."""
    arguments = parse_arguments()
    folder = index_folder(arguments.index_name)
    start = time.perf_counter()
    rows = build_index(arguments.data_path, folder, arguments.overwrite)
    seconds = time.perf_counter() - start
    print(f"{rows} rows indexed ({arguments.engine}) in {relative(folder)} in {seconds:.1f} s")
    print(
        "next: python src/augment.py --model_name MODEL --dataset DATASET --data_path DATA_PATH "
        f"--index_name {folder.name}"
    )


if __name__ == "__main__":
    run_stage(main)
