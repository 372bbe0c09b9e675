"""Measure encoding and answering: the published way, the same without padding, and this toolkit.

    python benchmarks/speed.py                                  # demo model, after `make demo`
    python benchmarks/speed.py --architecture llama3.2-1b --json benchmarks/results/speed_1b.json
    python benchmarks/speed.py --architecture llama3.2-1b --mode cot
    python benchmarks/speed.py --model MODEL --prompts default --dataset popqa --data_type total

The limit is the rate of this machine's own matrix products, in the model's shapes and dtype, in the
same run: 4 operations per parameter and token for training, 2 for reading and writing. All ways run
in one process, in turn, over and over (a, b, c, a, b, c, ...), after one round that is not counted;
medians are shown, and medians of each round's ratios. The published way (`published_loop.py`) is
slow and gets few of the passages and questions, those of typical length. Prompts are tokenized
beforehand for all; written adapters and their loading count. One pass over a passage's prompts,
learning rate 3e-4, rank 2, one prompt a step. The model that is not being measured waits in the
machine's memory, not on the GPU. With `--architecture` weights and tokens are random: no download,
and answers hardly ever end before `--max_new_tokens`.
"""

import argparse
import resource
import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from architectures import ARCHITECTURES

from utils.arguments import new_parser, positive_integer
from utils.recipe import DTYPES
from utils.running import run_stage

REPOSITORY = Path(__file__).resolve().parents[1]


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; what is not set depends on device and mode."""
    parser = new_parser(__doc__)
    group = parser.add_argument_group("model and prompts")
    group.add_argument("--model", default=str(REPOSITORY / "data/demo/demo-model"), help="a folder")
    group.add_argument("--architecture", choices=list(ARCHITECTURES), help="instead of --model")
    group.add_argument("--mode", choices=["direct", "cot"], default="direct", help="prompts")
    group.add_argument("--prompts", default="demo", help="prompt set, with --model")
    group.add_argument("--augment_model", help="who wrote the texts (not set: --model)")
    group.add_argument("--dataset", default="demo", help="augmented data set, with --model")
    group.add_argument("--data_type", default="test", help="its data type")
    group = parser.add_argument_group("amounts")
    group.add_argument(
        "--passages", type=positive_integer, help="passages to encode (not set: 96; GPU: 512)"
    )
    group.add_argument(
        "--published_passages",
        type=positive_integer,
        default=2,
        help="how many of them the published way and the one without padding encode",
    )
    group.add_argument(
        "--questions", type=positive_integer, help="questions to answer (not set: 64; GPU: 256)"
    )
    group.add_argument(
        "--published_questions",
        type=positive_integer,
        default=4,
        help="how many of them the published way answers",
    )
    group.add_argument("--repetitions", type=positive_integer, default=5, help="counted rounds")
    group.add_argument(
        "--max_new_tokens", type=positive_integer, help="of an answer (not set: 20; cot: 128)"
    )
    group.add_argument(
        "--padded_length",
        type=positive_integer,
        default=3000,
        help="tokens to which the published way pads a training prompt",
    )
    group = parser.add_argument_group("this toolkit's way")
    group.add_argument(
        "--neighbours",
        type=positive_integer,
        default=2,
        help="adapters that another way of encoding adds to each (encode.py --neighbours)",
    )
    group.add_argument("--dtype", choices=DTYPES, default="auto", help="auto: bfloat16 on a GPU")
    group.add_argument(
        "--adapters_per_batch", type=positive_integer, help="not set: as many as fit"
    )
    group.add_argument(
        "--batch_size", type=positive_integer, help="questions side by side (not set: as many)"
    )
    parser.add_argument("--json", type=Path, help="file for the raw result (not set: none)")
    options = parser.parse_args(arguments)
    from utils.models import pick_device  # imports torch: not before the flags are known

    gpu = pick_device().type == "cuda"
    options.passages = options.passages or (512 if gpu else 96)
    options.questions = options.questions or (256 if gpu else 64)
    options.max_new_tokens = options.max_new_tokens or (128 if options.mode == "cot" else 20)
    options.published_passages = min(options.published_passages, options.passages)
    options.published_questions = min(options.published_questions, options.questions)
    return options


def main() -> None:
    """Load, measure encoding, then answering; show; save."""
    options = parse_arguments()
    # torch takes seconds to import: not before the flags are known to be good
    import torch
    from clock import Stage
    from limit import matmul_rate
    from machine import machine
    from speed_report import add_ratios, print_tables
    from speed_ways import measure_answering, measure_encoding, open_work

    from utils.files import write_json
    from utils.models import pick_device
    from utils.provenance import provenance

    for message in ("Adapter merged was active", "`is_gradient_checkpointing`"):
        warnings.filterwarnings("ignore", message)  # peft's own doing
    work, stage = open_work(options), Stage(pick_device())
    parameters = sum(p.numel() for p in work.ours.parameters())
    if not work.ours.config.tie_word_embeddings:  # a look-up costs no arithmetic
        parameters -= work.ours.get_input_embeddings().weight.numel()
    dtype = str(work.ours.dtype).removeprefix("torch.")
    limit = matmul_rate(work.ours, stage.device)
    with tempfile.TemporaryDirectory(prefix="speed_") as folder:
        encoding = measure_encoding(work, stage, Path(folder), options)
        answering = measure_answering(work, stage, Path(folder), options)
    result = {
        "arguments": vars(options) | {"json": None, "dtype": dtype},
        "parameters_in_products": parameters,
        "parameters_of_head": work.ours.get_output_embeddings().weight.numel(),
        "matmul_rate": limit,
        "machine": machine() | {"threads": torch.get_num_threads()},
        "provenance": provenance(),
        "process_peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "encode": encoding,
        "answer": answering,
    }
    add_ratios(result)
    print_tables(result)
    if options.json:
        write_json(options.json, result)


if __name__ == "__main__":
    run_stage(main)
