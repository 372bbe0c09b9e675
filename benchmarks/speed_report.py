"""What `speed.py` derives from its measurements, and how it shows it."""

import statistics
from pathlib import Path

import torch

from utils.store.folders import load_adapter

# What float32 allows, with peft as the oracle: share of elements within 1e-6, largest difference
WITHIN, LARGEST = 0.999, 5e-4


def agreement(pairs: list[tuple[Path, Path]], shapes: dict) -> dict:
    """The largest difference between the adapters of each pair of folders, and the share in 1e-6.

    Loading checks names and shapes (`InputError`).
    """
    differences = []
    for one, other in pairs:
        first, second = load_adapter(one, shapes), load_adapter(other, shapes)
        differences += [
            (first[name][part] - second[name][part]).abs().flatten()
            for name in shapes
            for part in (0, 1)
        ]
    all_differences = torch.cat(differences)
    largest = all_differences.max().item()
    share = (all_differences <= 1e-6).double().mean().item()
    return {
        "largest_difference": largest,
        "share_within_1e-6": share,
        "within_bounds": largest <= LARGEST and share >= WITHIN,
    }


def add_ratios(result: dict) -> None:
    """Add to each way of `result` its median seconds per item, rates and ratios, in place."""
    parameters, head = result["parameters_in_products"], result["parameters_of_head"]
    for stage in ("encode", "answer"):
        ways = {k: way for k, way in result[stage].items() if isinstance(way, dict)}
        ways = {k: way for k, way in ways.items() if way.get("seconds")}
        for way in ways.values():
            way["seconds_per_item"] = statistics.median(way["seconds"]) / way["items"]
        for way in ways.values():
            way["items_per_second"] = 1 / way["seconds_per_item"]
            for other in {"published", "unpadded"} & ways.keys():
                ratio = ways[other]["seconds_per_item"] / way["seconds_per_item"]
                way[f"times_{other}"] = ratio
            if stage == "encode":
                rate = way["prompt_tokens"] / way["items"] / way["seconds_per_item"]
                way["tokens_per_second"] = rate
                way["padding_share"] = 1 - way["prompt_tokens"] / way["tokens"]
                operations = 4 * parameters * way["prompt_tokens"]
            else:  # the head reads the last token of a row alone
                operations = 2 * (parameters - head) * way["tokens"] + 2 * head * way["rows"]
            seconds = way["items"] * way["seconds_per_item"]
            way["utilisation"] = operations / seconds / result["matmul_rate"]
    encode, answer = result["encode"], result["answer"]
    answer["extra_cost_of_prag"] = _ratio(answer["ours"], answer["closed_book"]) - 1
    encode["extra_cost_of_neighbours"] = _ratio(encode["neighbours"], encode["ours"]) - 1


def _ratio(one: dict, other: dict) -> float:
    """The median of how many times as long `one` took, round by round, for as many items; NaN if
    one of them failed."""
    if one["failure"] or other["failure"]:
        return float("nan")
    pairs = zip(one["seconds"], other["seconds"], strict=True)
    return statistics.median(a / b for a, b in pairs)


def print_tables(result: dict) -> None:
    """Print the medians and ratios, and whether all ways agree."""
    options, provenance = result["arguments"], result["provenance"]
    model = options["architecture"] or options["model"]
    print(
        f"\n{model}, {options['mode']}, {provenance['device']}, ours in {options['dtype']}; "
        f"median of {options['repetitions']}; "
        f"the limit: {result['matmul_rate'] / 1e9:.0f} GFLOP/s"
    )
    titles = ("s/passage", "x publ.", "x unp.", "passages/s", "tokens/s", "padding", "util.")
    print(f"\n{'encode':12}" + "".join(f"{title:>12}" for title in (*titles, "peak GB")))
    for name in ("published", "unpadded", "ours", "neighbours"):
        way = result["encode"][name]
        cells = (
            ("seconds_per_item", ".4f"),
            ("times_published", ".2f"),
            ("times_unpadded", ".2f"),
            ("items_per_second", ".2f"),
            ("tokens_per_second", ".0f"),
            ("padding_share", ".1%"),
            ("utilisation", ".1%"),
        )
        _print_row(name, way, cells)
    ours = result["encode"]["ours"]
    print(
        f"ours: {ours['adapters_per_batch']} adapters side by side, "
        f"{ours['peak_bytes'] / 1e9:.2f} GB at most, {ours['expected_bytes'] / 1e9:.2f} GB by the "
        "formula of training_bytes (utils/lora/memory.py)"
    )
    extra = result["encode"]["extra_cost_of_neighbours"]
    print(f"{options['neighbours']} neighbours cost {extra:+.1%} (ours)")
    titles = ("s/question", "x publ.", "steps", "util.", "peak GB")
    print(f"\n{'answer':12}" + "".join(f"{title:>12}" for title in titles))
    for name in ("published", "ours", "closed_book"):
        way = result["answer"][name]
        cells = (("seconds_per_item", ".4f"), ("times_published", ".2f"), ("calls", "d"))
        _print_row(name, way, (*cells, ("utilisation", ".1%")))
    if provenance["device"] == "cpu":
        print(f"peak memory of the process: {result['process_peak_bytes'] / 1e9:.2f} GB")
    answer = result["answer"]
    print(
        f"\nprag costs {answer['extra_cost_of_prag']:+.1%} beside closed_book "
        f"(ours, {answer['ours']['calls']} and {answer['closed_book']['calls']} steps)"
    )
    for name in ("published", "unpadded"):
        if found := result["encode"][name].get("agreement"):
            print(
                f"adapters, {name} and ours: largest difference {found['largest_difference']:.1e}, "
                f"{found['share_within_1e-6']:.3%} within 1e-6" + _verdict(found, options["dtype"])
            )
    if found := answer.get("agreement"):
        print(
            f"answers, published and ours: {found['equal']} of {found['questions']} equal; with "
            f"stronger adapters, which change {found['changed_strong']}, {found['equal_strong']}"
        )


def _verdict(found: dict, dtype: str) -> str:
    """Whether the bounds hold; they are those of float32."""
    if dtype != "float32":
        return f" ({dtype}: no bound)"
    return ", within the bounds" if found["within_bounds"] else ", NOT within the bounds"


def _print_row(name: str, way: dict, cells: tuple) -> None:
    if way["failure"]:
        print(f"{name:12}{way['failure']:>24}")
        return
    shown = [format(way[key], form) if way.get(key) is not None else "-" for key, form in cells]
    shown.append(f"{way['peak_bytes'] / 1e9:.2f}" if way["peak_bytes"] else "-")
    print(f"{name:12}" + "".join(f"{cell:>12}" for cell in shown))
