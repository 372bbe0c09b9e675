"""adapters.py export --all, and --serve with a fake vLLM over real HTTP."""

import shutil

import pytest
import torch
from adapter_runs import demo_bank, files_below, stopped
from fake_server import FakeServer
from stage_runs import ADAPTERS, ENCODE, refused, run

import adapters
from utils.lora.merges import total
from utils.store import exporting
from utils.store.folders import load_adapter


class FakeVllm(FakeServer):
    """Knows adapters by name; `fault(path, body)` gives what is answered instead, or None."""

    def __init__(self):
        self.model = "/models/demo-model"
        self.loaded, self.asked, self.fault = {}, [], lambda path, body: None
        self.headers = {"Content-Type": "application/json"}
        super().__init__()

    def respond(self, request, lines):
        body = lines[0] if lines else {}
        if fault := self.fault(request.path, body):
            return fault
        self.asked.append((request.path, body.get("lora_name")))
        if request.path == "/v1/models":
            models = [
                {"id": name, "root": path, "parent": "served"} for name, path in self.loaded.items()
            ]
            return 200, {"data": [{"id": "served", "root": self.model}, *models]}
        if request.path == "/v1/unload_lora_adapter":
            del self.loaded[body["lora_name"]]
            return 200, "Success"
        assert request.path == "/v1/load_lora_adapter" and body["lora_name"] not in self.loaded
        self.loaded[body["lora_name"]] = body["lora_path"]
        return 200, "Success"


def export_all(folder, *more: str) -> None:
    run(adapters, "export", *ENCODE, "--all", "--output", str(folder), *more)


@pytest.fixture
def fake():
    with FakeVllm() as server:
        yield server


def test_all_questions_are_exported_and_a_stopped_export_goes_on(copy, capsys):
    folder = copy / "exported"
    stopped(exporting, "save_adapter", 3, adapters, "export", *ENCODE, "--all", "--output",
        str(folder))  # fmt: skip
    assert sorted(f.name for f in folder.glob("[!.]*")) == ["dev_0", "dev_1"]
    first = files_below(folder)
    export_all(folder)
    after = files_below(folder)
    assert first.items() <= after.items()
    assert "4 adapters, rank 8 at most" in capsys.readouterr().out
    bank = demo_bank()
    for did in range(4):
        places = [copy / ADAPTERS / f"data_{did}/passage_{pid}" for pid in range(3)]
        whole = total([load_adapter(place, bank.shapes(2)) for place in places], [], None)
        loaded = load_adapter(folder / f"dev_{did}", bank.shapes(8))
        for name, (A, B) in whole.items():
            assert torch.equal(loaded[name][0][:6], A) and torch.equal(loaded[name][1][:, :6], B)
    export_all(folder)
    assert files_below(folder) == after
    for more in (["--pad_rank", "16"], ["--merge_scale", "2"], ["--save_dtype", "float16"]):
        refused("dev_0 was made with .* remove it, or give another", export_all, folder, *more)
    shutil.move(copy / ADAPTERS / "data_1", copy / "aside")  # another passage in its place
    shutil.copytree(copy / ADAPTERS / "data_0", copy / ADAPTERS / "data_1")
    refused("made with data", export_all, folder)


def test_adapters_are_loaded_into_a_server_and_again_after_a_new_export(copy, fake, capsys):
    folder = copy / "exported"
    fake.loaded["dev_3"] = str(folder / "dev_3")
    export_all(folder, "--serve", fake.url + "/v1/")
    assert fake.loaded == {f"dev_{did}": str(folder / f"dev_{did}") for did in range(4)}
    assert ("/v1/unload_lora_adapter", "dev_3") in fake.asked
    said = capsys.readouterr().out
    assert f"4 adapters loaded into {fake.url}, 1 of them again" in said and "same?" not in said
    fake.model = "other"
    export_all(folder, "--serve", fake.url)
    assert "has the model other, the adapters are of /" in capsys.readouterr().out


def test_what_a_server_refuses_is_said_in_a_sentence(copy, fake, monkeypatch):
    folder = copy / "exported"
    monkeypatch.setenv("OPENAI_API_KEY", "secret")

    def said(message: str, fault, url: str = fake.url) -> None:
        fake.fault = fault
        assert "secret" not in refused(message, export_all, folder, "--serve", url)

    def error(status, words):
        return status, {"error": {"message": words, "code": status}}

    unknown = error(404, "Not Found")
    said("loads no adapters while it runs .* start it so: VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 .*"
        "--max-lora-rank 8", lambda path, body: unknown if body else None)  # fmt: skip
    said(
        "refuses dev_0 .*rank 8 is greater",
        lambda path, body: body and error(400, "rank 8 is greater"),
    )
    said("refuses the key", lambda path, body: error(401, "wrong key secret"))
    said("does not list its models", lambda path, body: (200, {"models": []}))
    said("cannot be reached .* start it", lambda path, body: None, "http://127.0.0.1:9")
    said("is not an address", lambda path, body: None, "localhost:8000")
    said("is not an address", lambda path, body: None, "http://[::1")
    fake.loaded["dev_2"] = "/elsewhere"
    fake.asked.clear()
    said("has dev_2 already, from /elsewhere; unload it", lambda path, body: None)
    assert fake.asked == [("/v1/models", None)]  # nothing was loaded
