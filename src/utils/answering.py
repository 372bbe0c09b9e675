"""Stage 3's work: prompts of the questions, answers batch by batch, the result on the disk."""

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from transformers import PreTrainedModel

from utils.active.rounds import Rounds
from utils.augmentation.records import texts_hash
from utils.batches import FiniteLogits, FirstLogits, answer_batch
from utils.experiment import Experiment
from utils.files import (
    hash_json,
    read_json,
    read_object,
    read_text,
    relative,
    write_json,
    write_text,
)
from utils.journal import (
    Journal,
    check_journal,
    journal_parts,
    refuse_difference,
    refuse_running,
    remove_journal,
)
from utils.layout import results_folder
from utils.lora.bank import LoraBank
from utils.lora.memory import prompts_that_fit
from utils.metrics import COUNTS, METRICS, answer_presence, extract_answer, mean_scores, score
from utils.models import context_length
from utils.processes import Processes
from utils.prompting import PromptEncoder, room_for_prompt
from utils.provenance import PROVENANCE, provenance
from utils.recipe import ACTIVE, IN_CONTEXT, IN_PARAMETERS, Recipe
from utils.retrieval import PassageIndex
from utils.running import InputError
from utils.store.folders import weights_hash
from utils.store.merging import open_merger
from utils.thoughts import without_thoughts

JOURNAL = ".predict.journal"
WEIGHTS = "weights"  # the hash of all adapters in a result's settings


def prompt_of(record: dict, method: str, encoder: PromptEncoder) -> list[int]:
    """The prompt of `record`'s question, with the passages that `method` puts into it. Which ones a
    method will retrieve is not known: these say how long its prompts are."""
    entries = record["augment"] if method in (*IN_CONTEXT, *ACTIVE) else []
    passages = [entry["passage"] for entry in entries]
    if method == "da_icl":
        text = encoder.prompts.augmented_passage
        passages = [text(entry["passage"], entry["rewrite"], entry["qa"]) for entry in entries]
    return encoder.question(record["question"], passages)


def prediction_of(record: dict, text: str, recipe: Recipe) -> dict:
    """A row of predict.json: the generated `text`, the answer in it, and its scores. Thoughts in
    the text answer nothing."""
    said = without_thoughts(text)
    prediction = extract_answer(said, recipe.with_cot, recipe.answer_cut)
    return {
        "test_id": record["test_id"],
        "question": record["question"],
        "answer": record["answer"],
        "text": text,
        "eval_predict": prediction,
        **score(prediction, record["answer"]),
        "answer_presence": answer_presence(said, record["answer"]),
    }


@dataclass
class Result:
    """The result of one data type: its folder `leaf`, and `config`, the settings that decide it."""

    experiment: Experiment
    data_type: str
    base: str | None  # the fingerprint of the adapters' base, None without adapters
    searched: dict  # which index is asked while answering; empty if none is

    def __post_init__(self):
        recipe = self.experiment.recipe
        self.leaf: Path = results_folder(recipe, self.data_type)
        self.records = self.experiment.asked[self.data_type]
        controls = recipe.settings("control").items()
        self.config = {
            **self.experiment.settings,
            **recipe.answer_settings,
            **{name: value for name, value in controls if value},
            **self.searched,
            "dtype": self.experiment.dtype,
            "sample": recipe.sample,
            "data": texts_hash(self.experiment.records[self.data_type]),
        }
        if recipe.locality:
            asked = [[record["question"], record["answer"]] for record in self.records]
            self.config["locality"] = hash_json(asked)
        if self.base:
            passages = self.experiment.passages(self.data_type, self.records)
            hashes = [weights_hash(folder) for own in passages for folder, _ in own]
            self.config |= {"base": self.base, WEIGHTS: hash_json(hashes)}

    def check(self, overwrite: bool, is_main: bool) -> bool:
        """Whether the result is complete: what `config.json`, written last, says it was made with
        counts, and `result.txt` follows from the other two. Raises `InputError` if it was made with
        other settings or is damaged; with `overwrite` only if another run is making it."""
        journal, path = self.leaf / JOURNAL, self.leaf / "config.json"
        if overwrite:
            refuse_running(journal_parts(journal) if is_main else ())
            return False
        config = read_object(path, "the settings file") if path.exists() else {}
        made_with = {name: config[name] for name in config if name not in (PROVENANCE, "measured")}
        if path.exists():
            made = {WEIGHTS: self.config.get(WEIGHTS), **made_with}  # older results have none
            what, remedy = f"the result in {relative(self.leaf)}", "or --overwrite to answer again"
            refuse_difference(what, made, self.config, f"use the same settings, {remedy}")
        older = config and (self.leaf / "result.txt").exists()  # from before times were measured
        if "measured" not in config and not older:
            check_journal(journal, self.config)
            return False
        text = self._text(self._predictions(), made_with)
        if is_main:
            if not _alike(self.leaf / "result.txt", text):
                write_text(self.leaf / "result.txt", text)
            with suppress(InputError):  # killed just before its removal, or another run overwrites
                remove_journal(journal)
        return True

    def _predictions(self) -> list[dict]:
        """The rows of `predict.json`; `InputError` unless they answer this run's questions."""
        path, asked = self.leaf / "predict.json", [record["question"] for record in self.records]
        with suppress(InputError):
            rows = read_json(path, "the predictions")
            if mean_scores(rows) and [row.get("question") for row in rows] == asked:
                return rows
        raise InputError(
            f"{relative(path)} is missing, damaged or not about these {len(asked)} questions; "
            "put the right one back, or answer again with --overwrite"
        )

    def remove(self) -> None:
        """Delete the result; until `config.json` is gone a killed run has the old one."""
        for name in ("result.txt", "config.json", "predict.json"):
            (self.leaf / name).unlink(missing_ok=True)

    def save(self, items: list[dict], prompts: list[list[int]]) -> None:
        """Write `predict.json`, `config.json` and `result.txt` from the journal's `items`."""
        by_question: dict[int, dict] = {}
        for item in items:
            by_question |= zip(item["questions"], item["predictions"], strict=True)
        if len(by_question) < len(prompts):
            lost = f"answers are missing in {relative(self.leaf / JOURNAL)}, another run may have"
            raise InputError(f"{lost} removed them; start the same command again")
        predictions = [by_question[did] for did in range(len(prompts))]
        texts = [row["text"] for row in predictions]
        generated = self.experiment.tokenizer(texts, add_special_tokens=False).input_ids
        measured = {
            "seconds": round(sum(item["seconds"] for item in items), 3),
            "questions": len(predictions),
            "prompt_tokens": sum(map(len, prompts)),
            "generated_tokens": sum(map(len, generated)),
            **_counted(predictions, sum),
        }
        config = {**self.config, PROVENANCE: provenance(), "measured": measured}
        write_json(self.leaf / "predict.json", predictions)
        write_json(self.leaf / "config.json", config)
        write_text(self.leaf / "result.txt", self._text(predictions, self.config))

    def _text(self, predictions: list[dict], config: dict) -> str:
        """`result.txt`: one line per metric, a blank line, the run's arguments."""
        recipe, means = self.experiment.recipe, mean_scores(predictions)
        shown = {metric: means[metric] for metric in METRICS} | _counted(predictions, fmean)
        lines = [f"{name}\t{mean:.4f}" for name, mean in shown.items()]
        named = {"model_name": recipe.model_name, "prompt_set": recipe.prompts}
        named |= {"dataset": recipe.dataset, "data_type": self.data_type}
        arguments = json.dumps({**named, **config}, ensure_ascii=False, indent=2)
        return "\n".join([*lines, "", arguments, ""])

    def summary(self) -> str:
        """The means of the metrics in a line."""
        means = mean_scores(self._predictions())
        shown = "  ".join(f"{metric} {means[metric]:.4f}" for metric in METRICS)
        title = f"{self.experiment.recipe.inference_method} {self.data_type}"
        return f"{title}: {shown}  ({len(self.records)} questions) {relative(self.leaf)}"


def _counted(predictions: list[dict], how: Callable) -> dict:
    """The sum or the mean of each of `COUNTS`; empty if nothing was retrieved while answering."""
    names = [name for name in COUNTS if name in predictions[0]]
    return {name: how(row[name] for row in predictions) for name in names}


def _alike(path: Path, text: str) -> bool:
    """Whether the file at `path` holds `text`, in which the same model may be spelt otherwise."""
    with suppress(InputError):
        texts = (read_text(path, "the result"), text)
        return len({re.sub(r'"(model_name|prompt_set)": .*', "", one) for one in texts}) == 1
    return False


def divergence(base: torch.Tensor, adapted: torch.Tensor) -> torch.Tensor:
    """KL(base || adapted) of the distributions that these logits `[rows, vocabulary]` mean, in
    nats `[rows]`; a token that both rule out adds nothing."""
    p, q = (logits.float().log_softmax(-1) for logits in (base, adapted))
    return torch.where(p == -torch.inf, 0.0, p.exp() * (p - q)).sum(-1)


class Answering:
    """Answers the questions of one data type after the other; loads the model when it is needed.
    `index` is for a method that retrieves while it answers."""

    def __init__(
        self, experiment: Experiment, processes: Processes, index: PassageIndex | None = None
    ):
        recipe = experiment.recipe
        longest = context_length(recipe.model_name, recipe.trust_remote_code)
        self.experiment, self.processes, self.index = experiment, processes, index
        beside = recipe.max_new_tokens + (recipe.look_ahead if index else 0)
        self.encoder = experiment.encoder_for(room_for_prompt(longest, beside))
        self.model: PreTrainedModel | None = None
        self.bank: LoraBank | None = None
        self.old: list[Result] = []  # what the first new answers replace

    def begin_again(self, results: list[Result]) -> None:
        """`--overwrite`: load the model, then forget unfinished work. What is complete goes when
        the first new answers are there: from then on a stopped run goes on without the flag."""
        self._load()
        if self.processes.is_main:
            self.old = list(results)
            for result in results:
                remove_journal(result.leaf / JOURNAL)
        self.processes.wait()

    def answer(self, result: Result) -> None:
        """Answer what has no answer yet and save the result. The batches depend on the whole list
        of questions, so a resumed run has the same ones."""
        processes, recipe = self.processes, self.experiment.recipe
        method = recipe.inference_method
        prompts = [prompt_of(record, method, self.encoder) for record in result.records]
        shared = processes.count > 1
        with Journal(result.leaf / JOURNAL, result.config, processes.index, shared) as journal:
            done = {did for item in journal.items for did in item["questions"]}
            done = set(processes.agree(sorted(done)))
            if len(done) < len(prompts):  # else the parts of an array need only be put together
                self._load()
            order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
            size = recipe.batch_size
            if self.model and not size:
                size = prompts_that_fit(self.model, prompts, recipe.max_new_tokens)
            size = processes.agree(size or len(prompts))
            batches = processes.share([order[i : i + size] for i in range(0, len(order), size)])
            rest = [batch for batch in batches if not done.issuperset(batch)]
            total, left = (sum(map(len, some)) for some in (batches, rest))
            with processes.bar(f"{method} {result.data_type}", "question", total, left) as bar:
                for item in self._batches(rest, result, prompts):
                    journal.add(item)
                    while self.old:
                        self.old.pop(0).remove()
                    bar.update(len(item["questions"]))
            processes.wait()
            if processes.is_main and not processes.is_shard:
                journal.reread()
                result.save(journal.items, prompts)
                journal.remove()

    def _load(self) -> None:
        if self.model is None:
            self.model = self.experiment.load_model()
            if self.experiment.recipe.inference_method in IN_PARAMETERS:
                self.bank = self.experiment.bank(self.model)

    def _batches(
        self, batches: list[list[int]], result: Result, prompts: list[list[int]]
    ) -> Iterator[dict]:
        """Answer batch after batch of questions (their places) and yield an item for each. An item
        has the batch's "questions", their "predictions" in this order, and its "seconds"."""
        experiment, recipe, records = self.experiment, self.experiment.recipe, result.records
        merger = self.bank and open_merger(experiment, self.bank, result.data_type, result.base)
        own = (self.model, experiment.tokenizer, self.encoder, self.index, recipe)
        rounds = Rounds(*own) if self.index else None
        mark = time.perf_counter()
        for batch, merged in merger.ahead(batches) if merger else ((b, None) for b in batches):
            first = prompts[batch[0]] if records[batch[0]]["augment"] else None
            asked = [prompts[did] for did in batch]
            watch = FirstLogits() if recipe.locality else FiniteLogits()
            how = (self.model, experiment.tokenizer, asked)
            adapters = (partial(merger.use, merged, prompt=first), self.bank.keep) if merger else ()
            if rounds:
                answers = rounds.answer({did: records[did]["question"] for did in batch})
            else:
                written = answer_batch(*how, recipe.max_new_tokens, watch, *adapters)
                answers = [(text, {}) for text, _ in written]
                watch.check(batch, bool(merger))
            if merger and recipe.locality:
                with self.bank.cleared():
                    answer_batch(*how, 1, alone := FirstLogits())
                moved = divergence(alone.first, watch.first).tolist()
                answers = [(text, {"kl": kl}) for (text, _), kl in zip(answers, moved, strict=True)]
            rows = zip(batch, answers, strict=True)
            predictions = [prediction_of(records[d], text, recipe) | n for d, (text, n) in rows]
            before, mark = mark, time.perf_counter()
            yield {"seconds": mark - before, "questions": batch, "predictions": predictions}
