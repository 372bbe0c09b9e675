"""adapters.py: what stands, is it sound, one question's for a server, packed and unpacked."""

import json
import os
import shutil
import subprocess
import sys

import peft
import pytest
import torch
from adapter_runs import files_below, linked_groups
from conftest import REPOSITORY
from safetensors.torch import load_file, save_file
from stage_runs import ADAPTERS, COMMON, DEV, MODEL, RESULTS, TRAIN, answer, run, tree
from transformers import AutoModelForCausalLM, AutoTokenizer

import adapters
import encode
import inference
from adapters import exported_alpha, padded_rank
from utils.lora.bank import LoraBank, merge, pad
from utils.prompting import PromptEncoder, load_prompts
from utils.running import InputError
from utils.store.folders import check_init_adapter, load_adapter, stored_adapters

FLAGS = [*COMMON, *DEV, *TRAIN]
WEIGHTS = "adapter_model.safetensors"
BASE = "offline/demo-model/rank=2_alpha=32/base_weight"


def command(name: str, *more: str, monkeypatch) -> None:
    flags = [] if name == "list" else FLAGS
    run(adapters, name, *flags, *more, monkeypatch=monkeypatch)


# ------------------------------------------------------------------------------------------------
# pack, unpack


@pytest.mark.parametrize("method", ["prag", "combine"])
def test_packed_adapters_give_the_same_predictions(finished, copy, monkeypatch, capsys, method):
    before, groups = files_below(copy / ADAPTERS), linked_groups(copy / ADAPTERS)
    command("pack", monkeypatch=monkeypatch)
    assert "12 adapters packed" in capsys.readouterr().out
    assert {p.name for p in (copy / ADAPTERS).iterdir()} == {"packed"}
    answer(method, "--overwrite", monkeypatch=monkeypatch)
    path = f"{RESULTS}/{method}/dev/predict.json"
    assert (copy / path).read_bytes() == (finished / path).read_bytes()
    command("unpack", monkeypatch=monkeypatch)
    assert "12 adapters unpacked" in capsys.readouterr().out
    assert files_below(copy / ADAPTERS) == before
    assert linked_groups(copy / ADAPTERS) == groups


def test_encode_knows_that_packed_adapters_stand(copy, monkeypatch, capsys):
    command("pack", monkeypatch=monkeypatch)
    before = files_below(copy / "offline")

    def unwanted(*arguments):
        raise AssertionError("a model was loaded")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "model_of", unwanted)
        run(encode, *FLAGS, monkeypatch=patch)
    assert "12 adapters stand already" in capsys.readouterr().out
    assert files_below(copy / "offline") == before
    with pytest.raises(InputError, match="was made with max_length"):
        run(encode, *FLAGS, "--max_length", "90", monkeypatch=monkeypatch)
    with pytest.raises(InputError, match="was made with seed"):
        answer("prag", "--overwrite", "--seed", "1", monkeypatch=monkeypatch)


def test_overwriting_packed_adapters_makes_folders_that_the_next_pack_takes(
    finished, copy, monkeypatch, capsys
):
    command("pack", monkeypatch=monkeypatch)
    run(encode, *FLAGS, "--overwrite", "--save_dtype", "bfloat16", monkeypatch=monkeypatch)
    assert len(list((copy / ADAPTERS).glob("data_*/passage_*"))) == 12
    command("list", monkeypatch=monkeypatch)
    assert "bfloat16" in capsys.readouterr().out
    command("pack", monkeypatch=monkeypatch)
    answer("prag", "--overwrite", monkeypatch=monkeypatch)
    command("unpack", monkeypatch=monkeypatch)
    for path in (copy / ADAPTERS).rglob(WEIGHTS):
        assert {t.dtype for t in load_file(path).values()} == {torch.bfloat16}


def test_changed_data_is_not_answered_with_packed_adapters(copy, monkeypatch):
    command("pack", monkeypatch=monkeypatch)
    path = copy / "data_aug/demo/dev.json"
    records = json.loads(path.read_text())
    records[0]["augment"][0]["demo-model_rewrite"] += " And more."
    path.write_text(json.dumps(records))
    with pytest.raises(InputError, match="was made with data ="):
        answer("prag", "--overwrite", monkeypatch=monkeypatch)


def test_a_damaged_pack_stops_inference_with_the_remedy(copy, monkeypatch):
    command("pack", monkeypatch=monkeypatch)
    [path] = (copy / ADAPTERS / "packed").glob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        InputError, match=r"data_\d/passage_\d.*hash differs; .*verify --remove_bad"
    ):
        answer("prag", "--overwrite", monkeypatch=monkeypatch)
    with pytest.raises(InputError, match="hash differs"):
        command("unpack", monkeypatch=monkeypatch)


# ------------------------------------------------------------------------------------------------
# list


def test_list_counts_what_stands(copy, monkeypatch, capsys):
    records = json.loads((copy / "data_aug/demo/dev.json").read_text())
    (copy / "data_aug/demo/total.json").write_text(json.dumps(records[::-1]))
    run(encode, *COMMON, "--dataset", "demo", *TRAIN, monkeypatch=monkeypatch)
    shutil.rmtree(copy / ADAPTERS.replace("/dev", "/total") / "data_3")
    capsys.readouterr()
    command("list", monkeypatch=monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("lr=0.004_epoch=2/aug_model=demo-model")
    assert lines[1].split() == (
        "data type passages distinct MB on disk MB each dtype base state".split()
    )
    dev, total = lines[2].split(), lines[3].split()
    assert dev[:3] == ["dev", "12", "12"] and dev[-1] == "complete"
    assert total[:3] == ["total", "9", "9"] and total[-2:] == ["3", "missing"]
    assert dev[5] == "float32" and dev[6] == total[6] and len(dev[6]) == 16
    size = (copy / ADAPTERS / "data_0/passage_0" / WEIGHTS).stat().st_size
    assert dev[4] == f"{size / 1e6:.3f}"
    used = 12 * sum(
        path.stat().st_blocks * 512 for path in (copy / ADAPTERS / "data_0/passage_0").iterdir()
    )
    assert dev[3] == f"{used / 1e6:.1f}"
    assert lines[4] == f"in all {used / 1e6:.1f} MB on disk"  # total is links
    command("pack", "--data_type", "dev", monkeypatch=monkeypatch)
    capsys.readouterr()
    command("list", monkeypatch=monkeypatch)
    packed = capsys.readouterr().out.splitlines()[2].split()
    assert packed[:3] == ["dev", "12", "12"] and packed[4:7] == dev[4:7]
    assert packed[-2:] == ["complete,", "packed"]


def test_list_goes_on_past_what_is_damaged_and_says_when_there_is_nothing(
    copy, monkeypatch, capsys
):
    (copy / ADAPTERS / "data_0/passage_0/training_config.json").write_text("{")
    command("list", monkeypatch=monkeypatch)
    assert "complete, 1 damaged" in capsys.readouterr().out
    (copy / ADAPTERS / "packed").mkdir()
    command("list", monkeypatch=monkeypatch)
    assert "damaged: the index of packed adapters" in capsys.readouterr().out
    shutil.rmtree(copy / "offline")
    command("list", monkeypatch=monkeypatch)
    assert capsys.readouterr().out == "no adapters; encode.py makes them\n"


# ------------------------------------------------------------------------------------------------
# verify


def rewrite(folder, change) -> None:
    """Change an adapter and its hash, as a program with a mistake would."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    path = folder / "training_config.json"
    record = json.loads(path.read_text())
    del record["weights_hash"]
    path.write_text(json.dumps(record))


def change_json(folder, name: str, **values) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


BAD = {
    "truncated": lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-9]),
    "changed": lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-1] + b"x"),
    "NaN": lambda f: rewrite(f, lambda t: t[min(t)].fill_(float("nan"))),
    "a missing key": lambda f: rewrite(f, lambda t: t.pop(min(t))),
    "a shape": lambda f: rewrite(f, lambda t: t.update({min(t): torch.zeros(2, 2)})),
    "another rank": lambda f: rewrite(
        f, lambda t: t.update({k: torch.cat([v, v], int("_B" in k)) for k, v in t.items()})
    ),
    "another base": lambda f: change_json(f, "training_config.json", base="f" * 16),
    "no record": lambda f: (f / "training_config.json").unlink(),
    "a damaged record": lambda f: (f / "training_config.json").write_text("[]"),
    "no configuration": lambda f: (f / "adapter_config.json").unlink(),
    "another alpha": lambda f: change_json(f, "adapter_config.json", lora_alpha=16),
    "other modules": lambda f: change_json(f, "adapter_config.json", target_modules=["q_proj"]),
}


@pytest.mark.parametrize("damage", BAD)
def test_verify_names_a_bad_adapter_and_encode_makes_it_again(copy, monkeypatch, capsys, damage):
    whole = tree(copy / "offline")
    folder = copy / ADAPTERS / "data_2/passage_1"
    for path in folder.iterdir():  # one of its own, not a link
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data)
    BAD[damage](folder)
    with pytest.raises(InputError, match=r"1 adapters or packs are bad; --remove_bad .*encode\.py"):
        command("verify", monkeypatch=monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if "data_2/passage_1" in line]) == 1
    assert lines[-1] == "12 adapters verified, 1 bad"
    command("verify", "--remove_bad", monkeypatch=monkeypatch)
    assert not folder.exists()
    assert len(stored_adapters(copy / ADAPTERS)) == 11
    if damage != "another base":  # the others would go the same way, only slower
        return
    run(encode, *FLAGS, monkeypatch=monkeypatch)
    assert tree(copy / "offline") == whole
    capsys.readouterr()
    command("verify", monkeypatch=monkeypatch)
    assert capsys.readouterr().out == "12 adapters verified, 0 bad\n"


@pytest.mark.parametrize("damage", ["a byte", "truncated", "no index"])
def test_verify_takes_bad_adapters_out_of_a_pack(copy, monkeypatch, capsys, damage):
    whole = tree(copy / "offline")
    command("pack", monkeypatch=monkeypatch)
    [path] = (copy / ADAPTERS / "packed").glob("*.safetensors")
    if damage == "no index":
        (copy / ADAPTERS / "packed/index.json").unlink()
    else:
        data = path.read_bytes()
        path.write_bytes(data[:-1] + b"x" if damage == "a byte" else data[:-9])
    with pytest.raises(InputError, match="are bad"):
        command("verify", monkeypatch=monkeypatch)
    command("verify", "--remove_bad", monkeypatch=monkeypatch)
    if damage == "a byte":
        assert len(stored_adapters(copy / ADAPTERS)) == 11
        with pytest.raises(InputError, match=r"^1 adapters are missing; run: .*encode\.py"):
            command("verify", monkeypatch=monkeypatch)
    else:
        assert not (copy / ADAPTERS / "packed").exists()
    run(encode, *FLAGS, monkeypatch=monkeypatch)
    if damage == "a byte":
        command("unpack", monkeypatch=monkeypatch)
    assert tree(copy / "offline") == whole


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_verify_looks_at_the_base_adapter_too(copy, monkeypatch, capsys, damage):
    whole = tree(copy / "offline")
    if damage == "changed":
        BAD["changed"](copy / BASE)
    else:
        shutil.rmtree(copy / BASE)
    with pytest.raises(InputError, match="1 adapters or packs are bad"):
        command("verify", monkeypatch=monkeypatch)
    assert "base_weight" in capsys.readouterr().out
    command("verify", "--remove_bad", monkeypatch=monkeypatch)
    assert not (copy / BASE).exists()
    shutil.rmtree(copy / ADAPTERS / "data_0")
    run(encode, *FLAGS, monkeypatch=monkeypatch)
    assert tree(copy / "offline") == whole
    command("verify", monkeypatch=monkeypatch)


def test_verify_never_removes_an_adapter_that_passages_start_from(copy, monkeypatch, capsys):
    start = copy / "offline/demo-model/rank=2_alpha=32/warmup_direct"
    shutil.copytree(copy / BASE, start)
    flags = ["--init_adapter", "warmup"]
    run(encode, *FLAGS, *flags, monkeypatch=monkeypatch)
    command("verify", *flags, monkeypatch=monkeypatch)
    BAD["changed"](start)
    capsys.readouterr()
    with pytest.raises(InputError, match="1 adapters or packs are bad"):
        command("verify", *flags, "--remove_bad", monkeypatch=monkeypatch)
    assert "warmup_direct" in capsys.readouterr().out
    assert (start / WEIGHTS).exists()


@pytest.mark.parametrize(("name", "value"), [("use_rslora", True), ("alpha_pattern", {"up": 1})])
def test_a_start_whose_weights_mean_something_else_is_refused(copy, name, value):
    check_init_adapter(copy / BASE, 2, 32)
    path = copy / BASE / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with pytest.raises(InputError, match=f"adapter_config.json has {name} = .* needs null"):
        check_init_adapter(copy / BASE, 2, 32)


def test_verify_as_a_program_ends_with_code_1_and_without_a_traceback(copy):
    BAD["truncated"](copy / ADAPTERS / "data_0/passage_0")
    words = [sys.executable, str(REPOSITORY / "src/adapters.py"), "verify", *FLAGS]
    done = subprocess.run(
        words, env=os.environ | {"PRAG_ROOT": str(copy)}, capture_output=True, text=True, cwd=copy
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "data_0/passage_0" in done.stdout
    assert done.stderr.strip().splitlines()[-1].startswith("error: 1 adapters or packs are bad")
    done = subprocess.run(
        [*words, "--remove_bad"], env=os.environ | {"PRAG_ROOT": str(copy)}, capture_output=True
    )
    assert done.returncode == 0


# ------------------------------------------------------------------------------------------------
# export


def answer_with_peft(folder, prompt: list[int], tokenizer) -> str:
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(MODEL), folder)
    ids = torch.tensor([prompt])
    output = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
    )
    return tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True)


@pytest.mark.parametrize("packed", [False, True])
def test_peft_answers_with_an_exported_adapter_as_inference_did(
    finished, copy, monkeypatch, tmp_path_factory, packed
):
    """Acceptance 4 of issue 8, for every question, without and with passages in the prompt."""
    if packed:
        command("pack", monkeypatch=monkeypatch)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    encoder = PromptEncoder(tokenizer, load_prompts("demo", "demo", False), False, 1000)
    records = json.loads((copy / "data_aug/demo/dev.json").read_text())
    expected = {
        method: json.loads((finished / RESULTS / f"{method}/dev/predict.json").read_text())
        for method in ("prag", "combine")
    }
    place = tmp_path_factory.mktemp("exported")
    for did, record in enumerate(records):
        flags = ["--question_id", str(did), "--output", str(place / str(did))]
        command("export", *flags, monkeypatch=monkeypatch)
        config = json.loads((place / str(did) / "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"]) == (8, 128)
        assert config["base_model_name_or_path"] == MODEL
        passages = [entry["passage"] for entry in record["augment"]]
        for method, context in (("prag", []), ("combine", passages)):
            prompt = encoder.question(record["question"], context)
            text = answer_with_peft(place / str(did), prompt, tokenizer)
            assert text == expected[method][did]["text"]


def test_an_exported_adapter_is_the_merged_one_filled_up_with_zeros(copy, monkeypatch, capsys):
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    bank = LoraBank(model, 2, 32)
    own = [
        load_adapter(copy / ADAPTERS / f"data_1/passage_{pid}", bank.shapes(2)) for pid in range(2)
    ]
    flags = ["--question_id", "1", "--merge_topk", "2", "--merge_scale", "0.5"]
    folder = copy / "exported"
    more = ["--output", str(folder), "--pad_rank", "16", "--save_dtype", "bfloat16"]
    command("export", *flags, *more, monkeypatch=monkeypatch)
    assert "rank 4, filled up to 16, lora_alpha 256" in capsys.readouterr().out
    loaded = load_adapter(folder, bank.shapes(16))
    for name, (A, B) in merge(own, 0.5).items():
        assert torch.equal(loaded[name][0][:4], A.bfloat16().float())
        assert torch.equal(loaded[name][1][:, :4], B.bfloat16().float())
        assert not loaded[name][0][4:].any() and not loaded[name][1][:, 4:].any()
    record = json.loads((folder / "training_config.json").read_text())
    assert record["merge_topk"] == 2 and record["merged_rank"] == 4
    with pytest.raises(InputError, match="exists already; give another folder"):
        command("export", *flags, *more, monkeypatch=monkeypatch)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--question_id", "4"], "--question_id 4: .* 4 questions, counted from 0"),
        (["--question_id", "1", "--sample", "1"], "--question_id 1: .* 1 questions"),
        (["--question_id", "0", "--pad_rank", "4"], "rank 6, above 4; give a larger --pad_rank"),
        (["--question_id", "0", "--seed", "5"], "was made with seed"),
        (["--question_id", "0", "--lora_rank", "4"], r"no adapter in .*encode\.py"),
    ],
)
def test_an_export_that_inference_would_refuse_is_refused(copy, monkeypatch, flags, message):
    with pytest.raises(InputError, match=message):
        command("export", *flags, "--output", str(copy / "new"), monkeypatch=monkeypatch)
    assert not (copy / "new").exists()


def test_an_export_asks_for_one_data_type(copy, monkeypatch):
    shutil.copy(copy / "data_aug/demo/dev.json", copy / "data_aug/demo/test.json")
    flags = [*COMMON, "--dataset", "demo", *TRAIN, "--question_id", "0", "--output", "new"]
    with pytest.raises(InputError, match="choose one --data_type of dev, test"):
        run(adapters, "export", *flags, monkeypatch=monkeypatch)


@pytest.mark.parametrize("name", ["verify", "pack", "unpack"])
def test_where_nothing_stands_the_command_that_makes_it_is_named(copy, monkeypatch, name):
    with pytest.raises(InputError, match=r"no adapters in .*run first: python src/encode\.py"):
        command(name, "--data_type", "nowhere", monkeypatch=monkeypatch)
    with pytest.raises(InputError, match="no adapters in"):
        command(name, "--learning_rate", "1", monkeypatch=monkeypatch)


@pytest.mark.parametrize("words", [[], ["lis"], ["verify"], ["export", *FLAGS], ["list", "--x"]])
def test_flags_that_are_missing_or_unknown_end_with_code_2(words, monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        run(adapters, *words, monkeypatch=monkeypatch)
    assert ended.value.code == 2 and "error: " in capsys.readouterr().err


def test_merging_the_base_once_needs_one_in_an_export_too(monkeypatch, capsys):
    words = ["export", *FLAGS, "--question_id", "0", "--output", "x", "--merge", "base_once"]
    with pytest.raises(SystemExit) as ended:
        run(adapters, *words, monkeypatch=monkeypatch)
    assert ended.value.code == 2 and "needs --init_adapter" in capsys.readouterr().err


@pytest.mark.parametrize("alpha", [32, 16, 1, 0.1, 7.3, 1000])
@pytest.mark.parametrize("rank", [1, 2, 3, 7, 64])
def test_pefts_scaling_of_an_exported_adapter_is_the_trained_one(alpha, rank):
    for exported in (8, 16, 32, 64, 128, 256, 512):
        assert exported_alpha(alpha, rank, exported) / exported == alpha / rank
    other = exported_alpha(alpha, rank, 320) / 320
    assert abs(other - alpha / rank) <= 2.3e-16 * alpha / rank


def test_padding_keeps_the_delta_and_ranks_are_those_of_servers():
    assert [padded_rank(rank, None) for rank in (1, 6, 8, 9, 300, 512)] == [8, 8, 8, 16, 320, 512]
    assert padded_rank(6, 0) == 6 and padded_rank(6, 7) == 7
    with pytest.raises(InputError, match="rank 513, above 512"):
        padded_rank(513, None)
    adapter = {"layer": (torch.randn(3, 5), torch.randn(4, 3))}
    A, B = pad(adapter, 8)["layer"]
    assert A.shape == (8, 5) and B.shape == (4, 8)
    torch.testing.assert_close(B @ A, adapter["layer"][1] @ adapter["layer"][0])


def test_inference_says_no_more_of_its_adapters_than_before(copy, monkeypatch):
    """The checks of `export` for one question do not loosen those of inference.py for all."""
    shutil.rmtree(copy / ADAPTERS / "data_3/passage_2")
    command("export", "--question_id", "0", "--output", str(copy / "x"), monkeypatch=monkeypatch)
    with pytest.raises(InputError, match="data_3/passage_2"):
        command(
            "export", "--question_id", "3", "--output", str(copy / "y"), monkeypatch=monkeypatch
        )
    with pytest.raises(InputError, match="data_3/passage_2"):
        run(inference, *FLAGS, "--inference_method", "prag", "--overwrite", monkeypatch=monkeypatch)
