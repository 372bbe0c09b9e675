"""Loading models, and generation whose texts do not depend on the batch."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import FAMILIES, REPOSITORY, WINDOW, edited, tiny_model
from safetensors.torch import load_file, save_file
from stage_runs import refused
from transformers import AutoTokenizer, GenerationConfig

from utils import generation, model_files
from utils.generation import SeededSampling, generate
from utils.journal import first_difference
from utils.model_files import resolve_model
from utils.models import context_length, load_model, load_tokenizer
from utils.prompting import PromptEncoder, load_prompts
from utils.running import InputError

DEMO = REPOSITORY / "data" / "demo" / "demo-model"
PROMPTS = [[1, 5, 9, 30, 7], [1, 44], [1, 8, 8, 60, 23, 17, 90, 3, 41]]


class Numbers:
    """A tokenizer whose text is the token ids themselves, up to the stop token."""

    pad_token_id, eos_token_id = 0, 2

    def batch_decode(self, rows, skip_special_tokens):
        return [" ".join(str(i) for i in row if i not in (0, 2)) for row in rows]


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(DEMO)


@pytest.fixture
def saved(tmp_path):
    """A tiny model's folder, with the sampling settings that a published model may bring."""
    published = tiny_model(seed=3)
    sampling = {"do_sample": True, "temperature": 3.0, "top_p": 0.5, "repetition_penalty": 4.0}
    published.generation_config = GenerationConfig(**sampling, eos_token_id=[2, 96])
    published.save_pretrained(tmp_path / "published")
    return tmp_path / "published"


def greedy(model, prompt, count):
    """The most likely continuation, token by token without cache or padding."""
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == 2:
                break
    return " ".join(str(i) for i in ids[len(prompt) :] if i not in (0, 2))


@pytest.mark.parametrize("family", FAMILIES)
def test_batched_greedy_answers_are_those_of_one_prompt_at_a_time(family, monkeypatch):
    """Token by token without a cache; texts that have ended leave the batch."""
    monkeypatch.setattr(generation, "SEGMENT", 5)
    model, prompts = tiny_model(family), [*PROMPTS, list(range(3, 3 + 3 * WINDOW))]
    expected = [greedy(model, prompt, 12) for prompt in prompts]
    assert len(set(expected)) == 4
    assert generate(model, Numbers(), prompts, 12) == expected
    assert [generate(model, Numbers(), [prompt], 12)[0] for prompt in prompts] == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_that_wait_take_the_places_of_finished_ones_and_stay_what_they_are(
    family, monkeypatch
):
    """Two side by side; a text that has ended may ask for one more."""
    monkeypatch.setattr(generation, "SEGMENT", 3)
    model = tiny_model(family)
    prompts = [*PROMPTS, list(range(3, 3 + 3 * WINDOW)), [9, 8, 7, 6, 5, 4]]
    seeds, how = [5, 6, 7, 8, 9], {"temperature": 1.5, "top_k": 20}
    alone = [
        generate(model, Numbers(), [prompt], 11, seeds=[seed], **how)[0]
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    told, later = {}, [(prompts[4], seeds[4])]

    def more(row: int, text: str) -> tuple[list[int], int] | None:
        told[row] = text
        return later.pop() if later else None

    how |= {"seeds": seeds[:4], "width": 2, "more": more}
    assert (
        generate(model, Numbers(), prompts[:4], 11, **how)
        == alone
        == list(dict(sorted(told.items())).values())
    )


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_prompts_share_is_read_once_and_the_texts_stay_what_they_are(
    family, temperature, monkeypatch
):
    """Two beginnings of different lengths, tails of all lengths, and prompts that share nothing;
    rows that leave at any time, and others that take their places."""
    for name, value in {"SEGMENT": 3, "LEAST_SHARED": 6, "PIECE": {"cpu": 16}}.items():
        monkeypatch.setattr(generation, name, value)
    model, one, other = tiny_model(family), list(range(20, 42)), list(range(50, 59))
    model.generation_config.eos_token_id = list(range(2, 97, 8))
    tails = [[5, 6], [7], [60, 61, 62, 3], [], [44] * 9, [8, 9, 30], [1] * 5]
    prompts = [(one, other)[n % 2] + tail for n, tail in enumerate(tails)] + [*PROMPTS, one[:12]]
    read, how = [], {"temperature": temperature, "top_k": 20}
    seeds = list(range(len(prompts)))
    alone = [
        generate(model, Numbers(), [prompt], 11, seeds=[seed], **how)[0]
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    assert len({len(text.split()) for text in alone}) > (3 if temperature else 1)
    model.get_input_embeddings().register_forward_hook(lambda _, ids, __: read.append(ids[0]))
    beginnings = generation.Beginnings(model, [[*one, 3, 4], [*other, 3, 4]])
    shared = [beginnings.of(prompt) for prompt in prompts]
    whole = [(22, 0), (8, 1), (22, 0), (7, 1), (22, 0), (9, 1), (22, 0), *[(0, 0)] * 3, (10, 0)]
    roomy = family not in ("mistral", "gemma3", "gemma3_text")  # the others have windows
    assert shared == (whole if roomy else [(0, 0)] * len(whole))
    for width in (None, 3):
        read.clear()
        how |= {"seeds": seeds, "width": width, "beginnings": beginnings}
        assert generate(model, Numbers(), prompts, 11, **how) == alone
        if roomy:
            rows = [row for ids in read for row in ids[:, :4].tolist()]
            assert one[:4] not in rows and PROMPTS[0][:4] in rows


@pytest.mark.parametrize("segment", [3, 32])
def test_a_sample_depends_on_its_seed_and_not_on_its_neighbours(model, monkeypatch, segment):
    monkeypatch.setattr(generation, "SEGMENT", segment)

    def sample(prompts, seeds):
        return generate(model, Numbers(), prompts, 12, seeds=seeds, temperature=1.5, top_k=20)

    seeds = [11, 12, 2**59 + 1]
    together = sample(PROMPTS, seeds)
    alone = [sample([prompt], [seed])[0] for prompt, seed in zip(PROMPTS, seeds, strict=True)]
    assert together == alone
    assert sample(PROMPTS[::-1], seeds[::-1]) == together[::-1]
    assert len(set(sample([PROMPTS[0]] * 8, list(range(8))))) > 4
    assert together[0] != generate(model, Numbers(), PROMPTS[:1], 12)[0]


def test_samples_are_distributed_as_the_softmax_of_the_best_scores():
    scores = torch.tensor([1.0, -0.5, 0.3, 2.0, 1.2, -3.0])
    top_k, temperature, count = 4, 0.7, 6000
    sampling = SeededSampling(list(range(count)), temperature, top_k)
    first, second = (sampling(None, scores.expand(count, -1)).argmax(-1) for _ in range(2))
    kept = [0, 2, 3, 4]
    expected = torch.zeros(6)
    expected[kept] = torch.softmax(scores[kept] / temperature, 0)
    deviation = (expected * (1 - expected) / count).sqrt()
    for drawn in (first, second):
        frequency = torch.bincount(drawn, minlength=6) / count
        assert ((frequency - expected).abs() <= 3.5 * deviation).all()
        assert frequency[1] == frequency[5] == 0
    # of no more tokens than there are a number is drawn
    assert SeededSampling([0], 1.0, 10**12)(None, scores[None]).shape == (1, 6)
    same = (expected**2).sum()  # how often two independent draws agree
    assert abs((first == second).float().mean() - same) < 3.5 * (same * (1 - same) / count) ** 0.5


def test_generation_settings_that_a_model_ships_with_do_not_reach_a_run(saved, tokenizer):
    loaded = load_model(str(saved), "float32", tokenizer).cpu()
    settings = loaded.generation_config
    assert settings.eos_token_id == [2, 96]
    assert settings.pad_token_id == tokenizer.pad_token_id
    assert not settings.do_sample
    assert settings.repetition_penalty in (None, 1.0)
    for name in ("temperature", "top_p"):
        assert getattr(settings, name) in (None, 1.0)
    assert generate(loaded, Numbers(), PROMPTS[:1], 8) == [greedy(loaded, PROMPTS[0], 8)]
    for dtype in ("float32", "bfloat16"):
        loaded = load_model(str(saved), dtype, tokenizer)
        assert loaded.dtype == getattr(torch, dtype) and not loaded.training
        assert not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("damage", ["no weights", "a pickle", "broken config", "cut weights"])
def test_a_damaged_model_is_an_input_error(saved, tokenizer, damage):
    weights = saved / "model.safetensors"
    if damage in ("no weights", "a pickle"):
        weights.unlink()
        if damage == "a pickle":
            torch.save(tiny_model(seed=3).state_dict(), saved / "pytorch_model.bin")
    elif damage == "broken config":
        (saved / "config.json").write_text('{"model_type": ')
    else:
        weights.write_bytes(weights.read_bytes()[:-1000])
    remedy = "convert them" if damage == "a pickle" else "check its files"
    refused(rf"cannot be loaded: .*; {remedy}", load_model, str(saved), "float32", tokenizer)


@pytest.mark.parametrize("change, message", [
    (lambda t: [t.pop(key) for key in sorted(t)[-3:]], r"\(3 missing, model\.layers\.1\.s\S+ f"),
    (lambda t: [t.update({f"_orig_mod.{k}": t.pop(k)}) for k in sorted(t)],
        r"\(20 missing, model\.embed\S+ first; 20 unexp.*_orig_"),
    (lambda t: t.update(extra=torch.zeros(1)), r"\(1 unexpected, extra first\)"),
    (lambda t: t.update({"model.norm.weight": torch.zeros(9)}),
        r"\(1 of another shape, model\.norm\.weight first"),
    (lambda t: t["model.layers.0.mlp.down_proj.weight"][0].fill_(torch.nan),
        "output is not finite, its weights .* fetch them again"),
])  # fmt: skip
def test_a_checkpoint_that_is_not_whole_or_not_finite_is_refused(saved, tokenizer, change, message):
    """The library fills up with random weights and says so in a log."""
    tensors = load_file(saved / "model.safetensors")
    change(tensors)
    save_file(tensors, saved / "model.safetensors", metadata={"format": "pt"})
    refused(message, load_model, str(saved), "float32", tokenizer)


@pytest.mark.parametrize("damage", ["no files", "cut file"])
def test_a_damaged_tokenizer_is_an_input_error(saved, damage):
    if damage == "cut file":
        shutil.copy(DEMO / "tokenizer_config.json", saved)
        (saved / "tokenizer.json").write_bytes((DEMO / "tokenizer.json").read_bytes()[:5000])
    refused("the tokenizer of --model_name", load_tokenizer, str(saved))


def with_json(folder, **changes):
    """A copy of the demo's model in `folder`, with `changes[file]` in its JSON files."""
    shutil.copytree(DEMO, folder)
    for file, values in changes.items():
        with edited(folder / f"{file}.json") as held:
            held |= values
    return str(folder)


def test_a_tokenizer_pads_with_a_token_that_the_model_knows(tmp_path):
    for number, padding in enumerate((None, "<|beyond|>")):
        name = with_json(tmp_path / str(number), tokenizer_config={"pad_token": padding})
        tokenizer = load_tokenizer(name)
        assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2
        assert tokenizer.model_max_length > 10**9  # or the library warns of a long text
    for number, end in enumerate((None, "<|beyond|>"), start=2):
        name = with_json(tmp_path / str(number), tokenizer_config={"eos_token": end})
        message = r"has the end token (None|2816), but .* 0 to 2815; na"
        refused(message, load_tokenizer, name)


def test_a_model_is_named_by_short_name_folder_or_hub_id(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    folder = root / "data" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert resolve_model("llama3-8b-instruct") == "meta-llama/Meta-Llama-3-8B-Instruct"
    assert resolve_model(str(folder)) == str(folder)
    assert resolve_model("data/mine") == str(folder)  # below the root folder
    assert resolve_model("Qwen/Qwen2.5-1.5B-Instruct") == "Qwen/Qwen2.5-1.5B-Instruct"


@pytest.mark.parametrize(
    "name", ["lama3-8b", "./owner/name", "/no/folder", "~/m", "a/b/c", "a/b.gguf"]
)
def test_a_folder_that_is_missing_is_refused_with_the_known_names(name):
    refused(r"there is no such file or folder, .*llama3\.2-1b-instruct", resolve_model, name)


def test_the_identity_of_a_model_changes_with_every_byte_that_decides_numbers(root, monkeypatch):
    folder = Path(with_json(root / "model"))
    identities = [model_files.model_identity(str(folder))]
    assert identities == [model_files.model_identity(f"{folder}/")]
    for name in ("model.safetensors", "tokenizer.json", "chat_template.jinja", "config.json"):
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)
        identities.append(model_files.model_identity(str(folder)))
    (folder / "README.md").write_text("decides nothing")
    assert model_files.model_identity(str(folder)) == identities[-1]
    assert len(set(identities)) == 5
    # an older record has the first part alone; a change there is seen, another one cannot be
    old = {"model": identities[0].partition("+")[0]}
    assert first_difference(old, {"model": identities[0]}) is None
    assert first_difference({"model": identities[0]}, {"model": identities[1]}) == "model"
    assert first_difference(old, {"model": identities[4]}) == "model"
    # of a large file the hash is kept until its size, time or inode changes
    monkeypatch.setattr(model_files, "LARGE", 1_000_000)
    assert model_files.model_identity(str(folder)) == identities[-1]
    with monkeypatch.context() as patch:
        patch.setattr(model_files.hashlib, "file_digest", lambda *_: pytest.fail("hashed again"))
        assert model_files._file_hash(folder / "model.safetensors")
    shutil.copy(DEMO / "model.safetensors", folder)
    assert model_files.model_identity(str(folder)) not in identities


def test_the_identity_of_a_hub_model_has_its_commit(monkeypatch):
    path = f"/hub/models--a--b/snapshots/{'5' * 40}/config.json"
    monkeypatch.setattr(model_files, "cached_file", lambda *_: path)
    assert model_files.model_identity("a/b") == f"a/b+{'5' * 40}"
    assert first_difference({"model": "a/b"}, {"model": f"a/b+{'5' * 40}"}) is None


def test_the_longest_prompt_is_read_from_the_models_configuration(saved):
    assert context_length(str(saved)) == 1024
    # beside a model for images; longrope's other positions would reach the rest of a batch
    for family, length in (("gemma3", 1024), ("phi3", 512)):
        tiny_model(family).config.save_pretrained(saved.parent / family)
        assert context_length(str(saved.parent / family)) == length
    (saved / "config.json").write_text("nothing")
    refused("cannot be loaded", context_length, str(saved))


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "chat_template.jinja"])
@pytest.mark.parametrize("content", ["[]", "{% for x in %}", '{"num_hidden_layers": -1}', "\x00"])
def test_whatever_a_models_files_hold_the_scripts_end_with_a_sentence(tmp_path, file, content):
    """transformers raises many kinds of errors; a template is a program of the model's."""
    folder = shutil.copytree(DEMO, tmp_path / "model")
    (folder / file).write_text(content)
    try:
        tokenizer = load_tokenizer(str(folder))
        prompts = load_prompts("demo", "demo", False)
        PromptEncoder(tokenizer, prompts, False, 100).question("Who?", [])
        load_model(str(folder), "float32", tokenizer)
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) > 40
