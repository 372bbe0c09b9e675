"""The command lines: every command that is shown parses, every flag is documented and used."""

import argparse
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import REPOSITORY

from utils.provenance import provenance

SCRIPTS = sorted(
    str(path.relative_to(REPOSITORY))
    for place in (
        "src/*.py",
        "*.py",
        "benchmarks/effect*.py",
        "benchmarks/real*.py",
        "benchmarks/counter*.py",
        "benchmarks/writing.py",
        "benchmarks/price.py",
    )
    for path in REPOSITORY.glob(place)
    if "parse_arguments" in path.read_text(encoding="utf-8")
)
CONFIGS = sorted(path.name for path in (REPOSITORY / "configs").glob("*.sh"))
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
SHARED_DEFAULTS = {  # the paper's, and what every stage shares
    "lora_rank": 2, "lora_alpha": 32, "learning_rate": 3e-4, "num_train_epochs": 1,
    "per_device_train_batch_size": 1, "with_cot": False, "init_adapter": "random",
    "augment_model": None,  # which means model_name
    "augment_parts": "rewrite,qa", "max_length": 3000, "dtype": "auto", "sample": -1,
}  # fmt: skip
TRAINING = "model_name with_cot lora_rank lora_alpha per_device_train_batch_size num_train_epochs "
TRAINING += "learning_rate "
ENCODING = TRAINING + "dataset data_type sample augment_model "
ORIGINAL_FLAGS = {  # those that must exist with exactly these names
    "src/augment.py": "model_name dataset data_path sample topk",
    "src/encode.py": ENCODING,
    "src/inference.py": ENCODING + "max_new_tokens inference_method",
    "prep_elastic.py": "data_path index_name",
    "src/warmup_lora.py": TRAINING + "block_size",
}
PAPER = {  # data set -> with CoT, max_new_tokens, epochs of each model
    "2wikimultihopqa": (True, 128, (1, 1, 1)),
    "hotpotqa": (True, 128, (1, 2, 1)),
    "popqa": (False, 20, (2, 2, 2)),
    "complexwebquestions": (False, 20, (1, 1, 1)),
}
PAPER_MODELS = ("llama3.2-1b-instruct", "qwen2.5-1.5b-instruct", "llama3-8b-instruct")


def parse(script: str, words: list[str]) -> argparse.Namespace:
    """`words` as the script's own parser reads them from the command line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REPOSITORY / Path(script).parent)
        module = importlib.import_module(Path(script).stem)
        patch.setattr(sys, "argv", [script, *words])
        parsed = module.parse_arguments()
        return parsed[0] if isinstance(parsed, tuple) else parsed  # the recipe comes along


def parser_of(script: str) -> argparse.ArgumentParser:
    caught = []

    def catch(parser, *_):
        caught.append(parser)
        raise SystemExit

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(argparse.ArgumentParser, "parse_args", catch)
        parse(script, [])
    return caught[0]


def commands_of(script: str) -> dict[str, argparse.ArgumentParser]:
    """The parsers of the script's commands by name; "" is the one of a script without any."""
    parser = parser_of(script)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return action.choices
    return {"": parser}


def flags_of(script: str) -> dict[str, argparse.Action]:
    """The flags of the script by name, `--help` left out."""
    parsers = commands_of(script).values()
    flags = [a for parser in parsers for a in parser._actions if a.option_strings]
    return {a.dest: a for a in flags if a.dest != "help"}


def recorded_commands(config: Path, folder: Path, **variables: str) -> list[list[str]]:
    """The `python` commands that a shell script starts with these `variables`; none is run."""
    record, stubs = folder / "record", folder / "stubs"
    stubs.mkdir()
    for name in ("python", "python3", "accelerate", "torchrun", "wget", "curl"):
        stub = stubs / name
        words = f'{{ printf "%s\\0" {name} "$@"; printf "\\n"; }}'
        stub.write_text(f'#!/bin/bash\n{words} >> "$RECORD"\n')
        stub.chmod(0o755)
    variables |= {"RECORD": str(record), "PRAG_ROOT": str(folder / "root")}
    environment = os.environ | variables | {"PATH": f"{stubs}:{os.environ['PATH']}"}
    subprocess.run(["bash", str(config)], env=environment, check=True, timeout=30, cwd=folder)
    commands = [words.split("\0") for words in record.read_text().split("\0\n") if words]
    return [words[1:] for words in commands if words[0] == "python"]


@pytest.mark.parametrize("config", CONFIGS)
def test_every_command_of_a_config_is_one_that_its_script_takes(config, tmp_path):
    commands = recorded_commands(REPOSITORY / "configs" / config, tmp_path)
    assert commands
    for script, *words in commands:
        assert script in SCRIPTS
        options = parse(script, words)
        paper_model = getattr(options, "model_name", None) in PAPER_MODELS
        if paper_model and getattr(options, "dataset", None) in PAPER:
            check_paper_settings(Path(script).stem, options)


def test_the_gpu_script_measures_what_its_benchmark_takes(tmp_path):
    variables = {"OUT": str(tmp_path / "out")}
    commands = recorded_commands(REPOSITORY / "benchmarks/gpu.sh", tmp_path, **variables)
    files = [word for word in commands[0] if word.endswith(".py")]
    assert files and all((REPOSITORY / file).is_file() for file in files)
    asked = [parse(script, words) for script, *words in commands if "speed" in script]
    shapes = [(one.architecture, one.mode) for one in asked]
    assert shapes == [("llama3.2-1b", "direct"), ("llama3.2-1b", "cot"), ("llama3-8b", "direct")]
    stages = {script for script, *_ in commands if script.startswith("src/")}
    assert stages == {f"src/{one}.py" for one in ("augment", "encode", "inference", "report")}


def test_every_table_of_the_paper_is_made_with_its_settings(tmp_path):
    config = REPOSITORY / "configs/reproduce_tables.sh"
    commands = recorded_commands(config, tmp_path, TABLES="main warmup parts augmenter")
    answers = [parse(script, c) for script, *c in commands if script == "src/inference.py"]
    for options in answers:
        check_paper_settings("inference", options)
    experiments = len(PAPER) * len(PAPER_MODELS)
    names = ("inference_method", "init_adapter", "augment_parts")
    count = Counter(
        (*(getattr(o, n) for n in names), o.augment_model == o.model_name) for o in answers
    )
    both = "rewrite,qa"
    for method in ("closed_book", "icl", "da_icl"):
        assert count.pop((method, "random", both, True)) == experiments
    for method in ("prag", "combine"):  # once in table 1, once among the augmentation models
        assert count.pop((method, "random", both, True)) == 2 * experiments
        assert count.pop((method, "random", both, False)) == 2 * experiments
        assert count.pop((method, "warmup", both, True)) == experiments
    for parts in ("rewrite", "qa", "none"):
        assert count.pop(("prag", "random", parts, True)) == experiments
    assert not count


def check_paper_settings(stage: str, options: argparse.Namespace) -> None:
    with_cot, max_new_tokens, epochs = PAPER[options.dataset]
    settings = vars(options)
    assert settings.get("sample", 300) == 300
    assert settings.get("topk", 3) == 3
    if stage in ("encode", "inference"):
        assert options.with_cot == with_cot
        assert options.num_train_epochs == epochs[PAPER_MODELS.index(options.model_name)]
        assert (options.lora_rank, options.lora_alpha) == (2, 32)
        assert (options.learning_rate, options.per_device_train_batch_size) == (3e-4, 1)
    if stage == "inference":
        assert options.max_new_tokens == max_new_tokens


def test_the_stages_of_the_demo_hand_on_the_same_settings(tmp_path):
    commands = recorded_commands(REPOSITORY / "configs" / "demo.sh", tmp_path)
    scripts = "prep_elastic.py src/augment.py src/encode.py src/inference.py src/report.py"
    assert " ".join(dict.fromkeys(words[0] for words in commands)) == scripts
    parsed = [parse(script, words) for script, *words in commands]
    index, augment, encode, *answers, beside, prag, combine, _ = parsed
    assert augment.index_name == beside.index_name == index.index_name
    methods = [options.inference_method for options in (*answers, prag, combine)]
    assert methods == ["closed_book", "icl", "prag", "combine", "prag", "combine"]
    own = {"seed", "overwrite", "batch_size", "index_name"}
    for trained, others in ((encode, (augment, *answers)), (beside, (prag, combine))):
        for options in others:
            shared = vars(options).keys() & vars(trained).keys() - own
            assert len(shared) >= 7
            for name in shared:
                assert getattr(options, name) == getattr(trained, name), name


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_commands_in_a_scripts_help_are_ones_that_scripts_take(script):
    description = parser_of(script).description
    commands = re.findall(r"^ *python (.*)$", description.replace("\\\n", " "), re.MULTILINE)
    assert commands
    for command in commands:
        other, *words = shlex.split(command.split(" > ")[0], comments=True)
        assert other in SCRIPTS
        parse(other, words)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_each_flag_with_its_meaning_and_default(script, capsys):
    for command, parser in commands_of(script).items():
        with pytest.raises(SystemExit) as ended:
            parse(script, [command, "--help"] if command else ["--help"])
        assert ended.value.code == 0
        shown = capsys.readouterr().out
        for action in parser._actions:
            name = action.dest
            if name == "help" or not action.option_strings:
                continue
            assert f"\n  --{name} " in shown or f"\n  --{name}\n" in shown
            assert action.help and len(action.help) > 8
            if action.nargs != 0 and not action.required:
                # a flag that may be left out says what then happens
                meaning = re.split(rf"\n  --{name}\s", shown)[1].split("\n  --", 1)[0]
                meaning = " ".join(meaning.split())
                if action.default is None:
                    assert "not set" in meaning or "only" in meaning, name
                else:
                    assert f"(default: {action.default}" in meaning, name


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_is_used(script):
    code = (REPOSITORY / script).read_text(encoding="utf-8")
    for room in (REPOSITORY / "src/utils").rglob("*.py"):
        code += room.read_text(encoding="utf-8")
    used = set(re.findall(r"\.(\w+)", code)) | set(re.findall(r"^    (\w+): ", code, re.MULTILINE))
    unused = flags_of(script).keys() - used
    assert not {name for name in unused if not name.startswith("es_")}  # read by their prefix


def test_no_script_imports_what_is_heavy_before_it_has_read_its_flags():
    program = f"""
import importlib, pathlib, sys
sys.path[:0] = ["src", ".", "benchmarks"]
for script in {SCRIPTS}:
    sys.argv = [script, "--help"]
    try:
        importlib.import_module(pathlib.Path(script).stem).parse_arguments()
    except SystemExit:
        pass
heavy = ["torch", "transformers", "pandas", "matplotlib", "numpy", "nltk", "regex", "tantivy",
         "openai", "elasticsearch", "peft", "sentence_transformers", "starlette", "uvicorn"]
print("imported:", [name for name in heavy if name in sys.modules])
"""
    said = subprocess.check_output([sys.executable, "-c", program], cwd=REPOSITORY, text=True)
    assert said.splitlines()[-1] == "imported: []"


@pytest.mark.parametrize("script", ORIGINAL_FLAGS)
def test_the_flags_of_the_original_exist(script):
    assert set(ORIGINAL_FLAGS[script].split()) <= flags_of(script).keys()


def test_encode_and_inference_share_their_flags_with_the_same_defaults():
    encode, inference = flags_of("src/encode.py"), flags_of("src/inference.py")
    shared = encode.keys() & inference.keys()
    assert SHARED_DEFAULTS.keys() <= shared
    for name in shared:
        first, second = (vars(flags[name]) for flags in (encode, inference))
        assert all(first[part] == second[part] for part in ("default", "type", "choices")), name
    assert {name: encode[name].default for name in SHARED_DEFAULTS} == SHARED_DEFAULTS


def test_the_short_names_are_the_papers_models():
    known = json.loads((REPOSITORY / "configs" / "models.json").read_text(encoding="utf-8"))
    assert set(PAPER_MODELS) <= known.keys()
    assert all(hub_id.count("/") == 1 for hub_id in known.values())


ENCODE = ["src/encode.py", "--dataset=d", "--model_name=m"]
PASSAGES = ["src/augment.py", *ENCODE[1:], "--passages=i"]


@pytest.mark.parametrize("command, message", [
    ([*ENCODE, "--lora_rank=0"], "argument --lora_rank: "),
    ([*ENCODE, "--lora_rank=many"], "argument --lora_rank: "),
    ([*ENCODE, "--learning_rate=nan"], "argument --learning_rate: "),
    ([*ENCODE, "--learning=1"], "--learning"),  # shortened
    (["src/encode.py", "--dataset=d", "--modle_name=x"],
        "required: --model_name; there is no --modle_name\n"),
    *(([*ENCODE, f"--shard={text}"], "argument --shard: ")
      for text in ("", "1", "2/2", "-1/2", "a/2", "0/0", "1/2/3", "½/2")),
    (["prep_elastic.py", "--from_context", "x"],
        "--data_path --from_contexts --from_text is required; there is no --from_context\n"),
    (["prep_elastic.py", "--data_path=x", "--from_contexts=y"],
        "argument --from_contexts: not allowed with argument"),
    ([*PASSAGES, "--topk=5"], "leave out --topk\n"),
    ([*PASSAGES, "--index_name=i", "--engine=golden"], "out --index_name, --engine golden\n"),
    ([*PASSAGES, "--data_type=dev"], "writes the data type corpus"),
    ([*PASSAGES, "--data_path=x"], "--data_path: not allowed with argument --passages"),
    (["src/augment.py", "--dataset=d", "--model_name=m"], "--data_path --passages is required"),
    (["src/adapters.py", "export", *ENCODE[1:], "--output=x"], "--question_id --all is required"),
    (["src/adapters.py", "export", *ENCODE[1:], "--output=x", "--question_id=0", "--serve=u"],
        "--serve loads what --all exports"),
])  # fmt: skip
def test_a_mistake_in_the_flags_is_named(command, message, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(command[0], command[1:])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.split("error: ")[-1]


@pytest.mark.parametrize("words", [
    ["--es_password", "sec ret"], ["--es_password=sec ret"], ["--es_api_key", "sec ret"],
    ["--es_url", "https://me:sec ret@host:9200"], ["--api_base", "https://me:sec ret@host/v1"],
])  # fmt: skip
def test_no_secret_of_the_command_line_is_kept(words, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["src/augment.py", "--topk", "3", *words])
    shown = json.dumps(provenance())
    assert "augment.py --topk 3" in shown
    assert "sec" not in shown.replace("secs", "") and "ret" not in provenance()["command"]


def commands(page: Path) -> list[list[str]]:
    """The words after `python` of each whole command of this repository in the page."""
    text = page.read_text(encoding="utf-8")
    found = []
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        block = block.replace("\\\n", " ")
        for name, value in re.findall(r'^(\w+)="(.*)"$', block, re.MULTILINE):
            block = block.replace(f"${name}", value)
        found += re.findall(r"^python ((?:src/|prep_elastic).*)$", block, re.MULTILINE)
    return [shlex.split(command, comments=True) for command in found if "…" not in command]


def anchors(page: Path) -> set[str]:
    """The names that links give to the page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_are_ones_that_the_scripts_take(page):
    for script, *words in commands(page):
        parse(script, words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_a_page_lead_to_files_and_headings(page):
    for link in re.findall(r"\]\(([^)]*)\)", page.read_text(encoding="utf-8")):
        if not link.startswith("http"):
            file, _, anchor = link.partition("#")
            target = page.parent / file if file else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_the_readme_stays_short():
    assert len(PAGES[0].read_text(encoding="utf-8").splitlines()) <= 250
