"""The real scripts, killed at random moments and started again: nothing lost, the same bytes.

`pytest -m slow tests/test_kills.py -s` shows how many signals were sent. `PRAG_KILLS=3` sends three
times as many, `PRAG_SEED` chooses other moments.
"""

import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import REPOSITORY, use_root
from stage_runs import AUGMENT, COMMON, DEV, MODEL, TRAIN, run, tree

from utils.retrieval.embedded import BYTES_WORTH_WORKERS, EmbeddedIndex

SEED = int(os.environ.get("PRAG_SEED", "7"))
KILLS = float(os.environ.get("PRAG_KILLS", "1"))
STARTING = 4.0  # seconds that the imports take
MOST = 60.0  # seconds that any run here may take
ENDING = 10.0  # seconds within which a Ctrl-C must have ended it
SIGNALS = [signal.SIGKILL] * 3 + [signal.SIGTERM, signal.SIGINT]
REASONING = "import utils; from test_kills import reason_slowly; reason_slowly()"
QUESTIONS = "data/demo/questions.json"


@dataclass
class Stage:
    """A script with its flags; `spread` is how many seconds its work takes at most."""

    script: str
    flags: list[str]
    spread: float
    environment: dict[str, str] = field(default_factory=dict)

    def command(self) -> list[str]:
        code = self.script == "-c"
        return [sys.executable, self.script if code else str(REPOSITORY / self.script), *self.flags]


def stages(sample: int) -> dict[str, Stage]:
    augment = [*AUGMENT, "--sample", str(sample), "--batch_size", "2"]
    answering = ["--inference_method", "combine", "--max_new_tokens", "12", "--batch_size", "1"]
    path = os.pathsep.join(str(REPOSITORY / folder) for folder in ("src", "tests"))
    warmup = ["--model_name", MODEL, "--prompts", "demo", "--data", "{root}/direct.json"]
    return {
        "index": Stage("prep_elastic.py", ["--data_path", "{root}/corpus.tsv"], 3),
        "augment": Stage("src/augment.py", augment, sample / 3),
        "encode": Stage(
            "src/encode.py", [*COMMON, *DEV, *TRAIN, "--adapters_per_batch", "1"], sample / 4
        ),
        "inference": Stage("src/inference.py", [*COMMON, *DEV, *TRAIN, *answering], sample / 14),
        "get_warmup_data": Stage("-c", [REASONING], 1.5, {"PYTHONPATH": path}),
        "warmup_lora": Stage("src/warmup_lora.py", [*warmup, "--save_steps", "2"], 1.5),
    }


def prepare(root: Path, name: str) -> None:
    """What the stage reads and no stage writes."""
    if name == "index":
        rows = (REPOSITORY / "data/demo/corpus.tsv").read_text().splitlines()
        copies = 1 + BYTES_WORTH_WORKERS // sum(len(row) + 4 for row in rows)
        lines = [f"{copy}-{row}" for copy in range(copies) for row in rows[1:]]
        (root / "corpus.tsv").write_text("\n".join([rows[0], *lines]) + "\n")
        assert (root / "corpus.tsv").stat().st_size > BYTES_WORTH_WORKERS
    elif name == "warmup_lora":
        questions = json.loads((REPOSITORY / QUESTIONS).read_text())["dev"][-30:]
        records = [{key: one[key] for key in ("question", "answer")} for one in questions]
        (root / "direct.json").write_text(json.dumps(records))


def started(stage: Stage, root: Path) -> subprocess.Popen:
    """The script as a process in a session of its own; its output goes to `root`.err and .out."""
    environment = os.environ | {"PRAG_ROOT": str(root), "OMP_NUM_THREADS": "1"}
    command = [word.replace("{root}", str(root)) for word in stage.command()]
    with open(f"{root}.out", "w") as out, open(f"{root}.err", "w") as err:
        return subprocess.Popen(
            command,
            env=environment | stage.environment,
            stdout=out,
            stderr=err,
            start_new_session=True,
            cwd=root,
            # a shell's background job would hand down that Ctrl-C is ignored
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


def said(root: Path) -> str:
    return Path(f"{root}.err").read_text()


def marks(root: Path) -> dict[str, int]:
    """Every file with its size, to see that something has happened."""
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)
            if os.path.exists(path):
                try:
                    found[path] = os.path.getsize(path)
                except OSError:
                    continue
    return found


def pieces(root: Path) -> int:
    """How much is complete: visible files, and lines of journals while a file is not there yet."""
    files = [path for path in root.rglob("*") if path.is_file()]
    visible = [path for path in files if not path.relative_to(root).as_posix().count("/.")]
    lines = sum(p.read_bytes().count(b"\n") for p in files if ".journal." in p.name)
    return 100_000 * len(visible) + lines


def session(leader: int) -> list[int]:
    """The processes of a session, dead ones that nobody waited for left out."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(state[3]) == leader and state[0] != "Z":
            found.append(int(folder.name))
    return found


def strike(stage: Stage, root: Path, number: int, chance: random.Random, after: float) -> bool:
    """Start the stage and send it the signal; whether it was still running then.

    The signal comes `after` seconds after the first thing that the run wrote; below 0 while it
    starts. Only the script's own process gets it, as when the system runs out of memory.
    """
    before, held = marks(root), pieces(root)
    process = started(stage, root)
    deadline = time.monotonic() + (MOST if after >= 0 else chance.uniform(0, STARTING))
    while process.poll() is None and time.monotonic() < deadline and marks(root) == before:
        time.sleep(0.005)
    time.sleep(max(0.0, after))
    if process.poll() is not None:
        assert process.returncode == 0, said(root)
        return False
    begun = marks(root) != before
    process.send_signal(number)
    process.wait(ENDING)
    for _ in range(400):  # a worker that is still importing sees it when it has started
        if not session(process.pid):
            break
        time.sleep(0.1)
    assert session(process.pid) == [], "a worker process was left"
    if process.returncode == 0:  # it was through already
        return False
    assert pieces(root) >= held, "something complete was lost"
    if number != signal.SIGKILL:
        text = said(root)
        while_importing = process.returncode == -number and not begun
        assert process.returncode == 128 + number or while_importing, (process.returncode, text)
        assert "Traceback" not in text and "Exception ignored" not in text, text
        if not (while_importing and number == signal.SIGTERM) and text:
            last = text.splitlines()[-1]
            assert "interrupted: " in last and "start the same command again" in last, text
    return True


def finish(stage: Stage, root: Path, monkeypatch=None) -> None:
    """Run the stage to its end: as a process, or with `monkeypatch` in this one."""
    if monkeypatch is None:
        process = started(stage, root)
        assert process.wait(MOST) == 0, said(root)
        return
    with monkeypatch.context() as patch:
        use_root(root, patch)
        flags = [flag.replace("{root}", str(root)) for flag in stage.flags]
        run(importlib.import_module(Path(stage.script).stem), *flags, monkeypatch=patch)


def state(root: Path, name: str) -> object:
    """What must not differ. Tantivy names its files at random: there it is what is found."""
    if name != "index":
        return tree(root)
    index = EmbeddedIndex(root / "index/wiki")
    questions = [one["question"] for one in json.loads((REPOSITORY / QUESTIONS).read_text())["dev"]]
    manifest = json.loads((root / "index/wiki/manifest.json").read_text())
    manifest = {key: manifest[key] for key in manifest.keys() - {"files", "digest"}}
    return sorted(os.listdir(root / "index")), manifest, index.search(questions[:40], 5)


def assert_nothing_half(root: Path, whole: object, name: str) -> None:
    """Every file that can be seen after a kill is one of the undisturbed run, to the last byte."""
    if name == "index":
        assert not (root / "index/wiki").exists() or state(root, name) == whole
        return
    for path, data in tree(root).items():
        if not any(part.startswith(".") for part in path.split("/")):
            assert whole[path] == data, path


def kill_again_and_again(
    name: str, stage: Stage, source: Path, folder: Path, signals: list[int], monkeypatch=None
) -> int:
    """Send each of `signals` to a run of the stage; the number of runs that it took in all."""
    chance = random.Random(f"{SEED} {name}")
    undisturbed, root = folder / "undisturbed", folder / "killed"
    for place in (undisturbed, root):
        shutil.copytree(source, place)
        prepare(place, name)
    finish(stage, undisturbed, monkeypatch)
    whole = state(undisturbed, name)
    waiting, runs = list(signals), 0
    while waiting:
        early = monkeypatch is None and chance.random() < 0.15
        runs += 1
        after = -1.0 if early else chance.uniform(0, stage.spread)
        if strike(stage, root, waiting[0], chance, after):
            waiting.pop(0)
            assert_nothing_half(root, whole, name)
            complete = name == "index" and (root / "index/wiki").exists()  # killed as it ended
        else:  # it was faster
            complete = True
            assert state(root, name) == whole
        if complete:  # the next round begins from nothing
            shutil.rmtree(root)
            shutil.copytree(source, root)
            prepare(root, name)
    finish(stage, root, monkeypatch)
    assert state(root, name) == whole
    return runs + 1


@pytest.fixture(scope="module")
def copies(finished, tmp_path_factory):
    """A root without what the stage `name` writes, made from the finished one."""

    def without(name: str) -> Path:
        root = tmp_path_factory.mktemp(name) / "source"
        kept = {"augment": ["index"], "encode": ["index", "data_aug"]}
        kept["inference"] = [*kept["encode"], "offline"]
        root.mkdir()
        for part in kept.get(name, []):
            shutil.copytree(finished / part, root / part)
        return root

    return without


@pytest.mark.parametrize(
    ("name", "signals"),
    [
        ("index", [signal.SIGKILL]),
        ("augment", [signal.SIGTERM]),
        ("encode", [signal.SIGKILL, signal.SIGINT]),
        ("inference", [signal.SIGKILL]),
    ],
)
def test_a_killed_stage_goes_on_and_ends_with_the_same_bytes(
    copies, tmp_path, monkeypatch, name, signals
):
    kill_again_and_again(name, stages(4)[name], copies(name), tmp_path, signals, monkeypatch)


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """For each stage the root that it starts from, with 14 questions."""
    made = {}
    root = tmp_path_factory.mktemp("larger") / "root"
    root.mkdir()
    index = Stage("prep_elastic.py", ["--data_path", str(REPOSITORY / "data/demo/corpus.tsv")], 0)
    index.flags += ["--index_name", "demo"]
    for name, before in (("augment", index), ("encode", None), ("inference", None)):
        finish(before or stages(14)[{"encode": "augment", "inference": "encode"}[name]], root)
        made[name] = root.with_name(name)
        shutil.copytree(root, made[name])
    root.with_name("empty").mkdir()
    return lambda name: made.get(name, root.with_name("empty"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kills"),
    [
        ("index", 6),
        ("augment", 8),
        ("encode", 8),
        ("inference", 7),
        ("get_warmup_data", 6),
        ("warmup_lora", 6),
    ],
)
def test_killed_many_times_at_random_moments(larger, tmp_path, name, kills, capsys):
    chance = random.Random(f"{SEED} signals {name}")
    signals = [chance.choice(SIGNALS) for _ in range(round(kills * KILLS))]
    begin = time.monotonic()
    runs = kill_again_and_again(name, stages(14)[name], larger(name), tmp_path, signals)
    counts = {number.name: signals.count(number) for number in dict.fromkeys(SIGNALS)}
    with capsys.disabled():
        print(f"\n{name}: {counts}, {runs} runs, {time.monotonic() - begin:.0f} s")


def reason_slowly() -> None:
    """`get_warmup_data.py` with a model that reasons, which the demo's cannot."""
    from test_warmup import COT, reason

    import get_warmup_data
    from utils.running import run_stage

    def generate(*arguments):
        time.sleep(0.1)
        return reason(*arguments)

    get_warmup_data.generate = generate
    sys.argv = ["get_warmup_data.py", *COT, "--cot_records", "3", "--batch_size", "1"]
    run_stage(get_warmup_data.main)
