"""One page on what a score is made of: knowledge, format, robustness, cost (docs/evidence.md).

It is about a plain `prag`, and compares it with what differs from it in one control alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean, median

from utils import layout
from utils.files import read_json
from utils.forms import read_records
from utils.metrics import score
from utils.recipe import IN_PARAMETERS, Recipe
from utils.reporting.comparing import CONDITIONS, CONTROLS, KIND, TRAINING
from utils.reporting.runs import COSTS, Run
from utils.reporting.statistics import LEVEL, bootstrap_interval, paired_test
from utils.reporting.tables import harmless, markdown_table

METHODS = ("closed_book", "icl", "prag", "combine")
READING = METHODS[1:]
HEAD = ["answers", "n", "F1 and 95% interval", "EM", "answer presence", "judge"]
HEAD += ["difference in F1", "left of prag's gain"]
MERGING = tuple(Recipe().settings("merging"))
ALIKE = tuple(name for name in KIND if name != "adapters")
OTHER_ADAPTERS = {  # value of --adapters -> whose they are
    "others": "adapters of other questions' passages",
    "average": "the average adapter",
    "random": "random adapters of equal norm",
}


def evidence_pages(runs: list[Run], samples: int, seed: int) -> str:
    """The page of each plain `prag` among `runs` that has a control, "" if none has one."""
    pages = [Evidence(run, runs, samples, seed) for run in runs if _is_plain(run)]
    return "\n".join(page.text() for page in pages if page.has_controls)


def _is_plain(run: Run) -> bool:
    plain = run.base_method == "prag" and run.is_default((*MERGING, *CONTROLS, "adapters"))
    return plain and not run.has_locality and not run.data_type.endswith(layout.COUNTERFACTUAL)


@dataclass
class Evidence:
    """The page about the run `plain`; `runs` are all, `samples` and `seed` those of statistics."""

    plain: Run
    runs: list[Run]
    samples: int
    seed: int

    def found(
        self,
        method: str,
        adapters: str = "trained",
        data_type: str | None = None,
        locality: bool = False,
        **control: str,
    ) -> list[Run]:
        """The runs of `method` that differ from the plain one in this alone; those that share its
        folder come first."""
        plain, data_type = self.plain, data_type or self.plain.data_type
        wanted = dict.fromkeys(CONTROLS) | control
        same = CONDITIONS
        if method in IN_PARAMETERS:
            wanted["adapters"], same = adapters, (*CONDITIONS, *TRAINING, *ALIKE)
        of = (plain.model, plain.dataset, data_type, method, locality)
        runs = [
            run
            for run in self.runs
            if (run.model, run.dataset, run.data_type, run.base_method, run.has_locality) == of
            and run.is_default(MERGING)
            and run.agrees(plain, same)
            and all(run.value(name) == value for name, value in wanted.items())
        ]
        if data_type == plain.data_type:
            runs = [run for run in runs if self._same_questions(run)]
        return sorted(runs, key=lambda run: run.setting != plain.setting)

    def _same_questions(self, run: Run) -> bool:
        same_texts = run.base_method == "closed_book" or run.agrees(self.plain, ["data"])
        same = run.scores["identity"].equals(self.plain.scores["identity"])
        return same_texts and (same or run.has_locality)

    def one(self, method: str, **how: str) -> Run | None:
        """The first of those `found`, None without any."""
        return next(iter(self.found(method, **how)), None)

    @property
    def has_controls(self) -> bool:
        """Whether there is anything beside the plain methods to show."""
        controls = [{"adapters": name} for name in OTHER_ADAPTERS]
        controls += [{"noise": place} for place in ("first", "last", "all")]
        controls += [{"leave_out": "gold"}, {"locality": True}]
        controls.append({"data_type": self.plain.data_type + layout.COUNTERFACTUAL})
        return any(self.found(method, **one) for method in IN_PARAMETERS for one in controls)

    def text(self) -> str:
        """The whole page."""
        plain = self.plain
        title = f"{plain.dataset}, {plain.data_type}, {plain.model}"
        sections = {
            "Knowledge: do the answers come from the passages?": self.knowledge(),
            "Format: what do adapters give that know nothing of the passages?": self.format(),
            "Robustness: bad passages, other questions": self.robustness(),
            "Cost": self.cost(),
        }
        lines = [f"# Evidence: {harmless(title, 'markdown')}", ""]
        lines += [harmless(", ".join(plain.setting), "markdown"), "", self._caption()]
        for name, content in sections.items():
            lines += ["", f"## {name}", "", *content]
        return "\n".join(lines) + "\n"

    def _caption(self) -> str:
        return (
            "F1 with its 95% bootstrap interval over the questions; differences with the p-value "
            f"of a two-sided paired randomisation test ({self.samples} draws, seed {self.seed}), "
            "not corrected for their number. Left of prag's gain: (F1 - closed_book) / (prag - "
            "closed_book), if that gain is significant. What each line separates: docs/evidence.md."
        )

    # ---------------------------------------------------------------------------------------------
    # Sections

    def knowledge(self) -> list[str]:
        """The methods, the controls that take the passages' knowledge away, false passages."""
        base = self.one("closed_book")
        lines = [self._line(name, self.one(name), base, "closed_book") for name in METHODS]
        others, label = self.one("prag", adapters="others"), OTHER_ADAPTERS["others"]
        lines.append(self._line(f"prag, {label}", others, self.plain, "prag"))
        for method in READING:
            without = self.one(method, leave_out="gold")
            label = f"{method}, without gold passages"
            lines.append(self._line(label, without, self.one(method), method))
        return [*_table([HEAD, *lines]), *self._counterfactual()]

    def _counterfactual(self) -> list[str]:
        """Whom answers follow when the passages say something false."""
        head = ["method", "n", "as the passages say", "as was right before", "neither"]
        data_type, lines = self.plain.data_type + layout.COUNTERFACTUAL, []
        path = layout.augmented_file(self.plain.dataset, data_type)
        originals = {}
        if path.is_file():
            records = read_records(path)
            originals = {(one["test_id"], one["question"]): one.get("original") for one in records}
        for method in METHODS:
            run = self.one(method, data_type=data_type)
            rows = read_json(run.folder / "predict.json", "the predictions") if run else []
            keys = [(row["test_id"], row["question"]) for row in rows]
            if not rows or any(originals.get(key) is None for key in keys):
                continue
            new = fmean(row["em"] for row in rows)
            both = zip(rows, keys, strict=True)
            old = fmean(score(row["eval_predict"], originals[key])["em"] for row, key in both)
            shares = [f"{share:.3f}" for share in (new, old, 1 - new - old)]
            lines.append([method, str(len(rows)), *shares])
        if not lines:
            return []
        words = "Passages in which a false answer stands for the right one (exact matches):"
        return ["", words, "", *_table([head, *lines])]

    def format(self) -> list[str]:
        """`prag` with adapters that hold no knowledge of the question's passages."""
        base = self.one("closed_book")
        lines = [self._line("closed_book", base, None, "")]
        lines.append(self._line("prag", self.plain, base, "closed_book"))
        for adapters, label in OTHER_ADAPTERS.items():
            run = self.one("prag", adapters=adapters)
            lines.append(self._line(f"prag, {label}", run, base, "closed_book"))
        return _table([HEAD, *lines])

    def robustness(self) -> list[str]:
        """Noise among the passages; what adapters do to other questions."""
        lines = []
        for method in READING:
            plain = self.one(method)
            lines.append(self._line(method, plain, None, ""))
            for place in ("first", "last", "all"):
                label = f"{method}, noise: {place}"
                lines.append(self._line(label, self.one(method, noise=place), plain, method))
        return [*_table([HEAD, *lines]), *self._locality()]

    def _locality(self) -> list[str]:
        """Other questions with each question's adapters, against the model alone."""
        lines, said = [], []
        for base in self.found("closed_book", locality=True):
            name = harmless(base.method.partition("_locality=")[2], "markdown")
            lines.append(self._line(f"{name}: closed_book", base, None, ""))
            for method in IN_PARAMETERS:
                same = self.found(method, locality=True)
                same = [r for r in same if r.scores["identity"].equals(base.scores["identity"])]
                for run in same[:1]:
                    lines.append(self._line(f"{name}: {method}", run, base, "closed_book"))
                    kl = run.scores["kl"]
                    said.append(
                        f"with `{method}` the distribution of the first token is KL(base || with "
                        f"adapters) = {fmean(kl):.3f} nats from the model's own (median "
                        f"{median(kl):.3f})"
                    )
        words = "Other questions, answered with each question's adapters:"
        return ["", words, "", *_table([HEAD, *lines]), *_paragraph(said)] if lines else []

    def cost(self) -> list[str]:
        """Seconds and tokens of an answer; the adapters on the disk."""
        lines = [["method", *(f"{name.replace('_', ' ')} per question" for name in COSTS)]]
        for method in METHODS:
            costs = run.costs if (run := self.one(method)) else {}
            cells = (f"{costs[name]:.3g}" if name in costs else "" for name in COSTS)
            lines += [[method, *cells]] if costs else []
        plain, where = self.plain, layout.ROOT_DIR / "offline" / self.plain.model
        rank, training, writer = plain.setting
        folder = where / rank / plain.dataset / training / writer / plain.data_type
        weights = [f.stat() for f in folder.glob("data_*/passage_*/adapter_model.safetensors")]
        different = {stat.st_ino: stat.st_size for stat in weights}
        stored = (
            f"{len(weights)} passages have {len(different)} different adapters, "
            f"{sum(different.values()) / 1e6:.1f} MB"
        )
        return [*_table(lines), *_paragraph([stored if weights else ""])]

    # ---------------------------------------------------------------------------------------------

    def _line(self, label: str, run: Run | None, against: Run | None, name: str) -> list[str]:
        """A line of a table; [] if there is no such run. The difference is to the run `against`."""
        if run is None:
            return []
        scores, difference = run.scores, ""
        if against is not None and against is not run:
            more = scores["f1"].mean() - against.scores["f1"].mean()
            difference = f"{more:+.3f} to {name}, {self._p(run, against)}"
        low, high = bootstrap_interval(scores["f1"], self.samples, self.seed)
        means = scores[["em", "answer_presence"]].mean()
        judge = f"{scores['judge'].mean():.3f}" if "judge" in scores else ""
        f1 = f"{scores['f1'].mean():.3f} [{low:.3f}, {high:.3f}]"
        shown = [f1, *(f"{one:.3f}" for one in means), judge, difference, self._share(run)]
        return [label, str(len(scores)), *shown]

    def _p(self, run: Run, against: Run) -> str:
        p = paired_test(run.scores["f1"], against.scores["f1"], self.samples, self.seed)
        return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"

    def _share(self, run: Run) -> str:
        """Which share of what `prag` gains over `closed_book` a control of it leaves; "" if the
        gain is not significant."""
        base, plain = self.one("closed_book"), self.plain
        other = run.base_method != "prag" or run is plain or run.has_locality
        if base is None or other or run.value("noise"):
            return ""
        alone, whole, own = (one.scores["f1"] for one in (base, plain, run))
        gain = whole.mean() - alone.mean()
        if gain <= 0 or paired_test(whole, alone, self.samples, self.seed) >= 1 - LEVEL:
            return ""
        return f"{(own.mean() - alone.mean()) / gain:.0%}"


def _table(lines: Iterable[list[str]]) -> list[str]:
    """A table in Markdown; lines without cells are left out, a word without any."""
    shown = list(filter(None, lines))
    return markdown_table(shown) if len(shown) > 1 else ["No result."]


def _paragraph(sentences: Iterable[str]) -> list[str]:
    """The sentences, if any, as a paragraph after a table."""
    said = [one[0].upper() + one[1:] for one in sentences if one]
    return ["", ". ".join(said) + "."] if said else []
