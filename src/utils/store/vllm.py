"""Exported adapters into a running vLLM, by its own interface for that."""

import os
from pathlib import Path

from tqdm import tqdm

from utils.augmentation.server import ADDRESS, without_password
from utils.layout import folder_name
from utils.running import InputError

START = (
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve MODEL --enable-lora --max-lora-rank {rank}, "
    "where --output can be read"
)


class VllmServer:
    """A running vLLM; `url` is its address, with or without /v1. The adapters for it have at most
    `rank` and are of the model `base`.

    Its key, if it wants one, is read from `OPENAI_API_KEY` alone and shown nowhere. Raises
    `InputError` if it cannot be reached or is something else.
    """

    def __init__(self, url: str, rank: int, base: str):
        import openai

        url, self.rank = url.strip().rstrip("/").removesuffix("/v1"), rank
        self.url = without_password(url)
        if not ADDRESS.match(url):
            raise InputError(f"--serve {self.url} is not an address such as http://localhost:8000")
        self.key = os.environ.get("OPENAI_API_KEY", "").strip()
        self.client = openai.OpenAI(base_url=f"{url}/v1", api_key=self.key or "none", timeout=300)
        try:
            listed = self._ask("get", "/models")["data"]
            # where each model and adapter that it has is from
            self.loaded = {str(one["id"]): str(one.get("root")) for one in listed}
            models = [str(one.get("root")) for one in listed if not one.get("parent")]
        except (TypeError, KeyError, AttributeError, ValueError):
            raise InputError(
                f"the server at {self.url} does not list its models as vLLM does; correct --serve"
            ) from None
        if folder_name(base) not in [one.rstrip("/").rpartition("/")[2] for one in models]:
            known = ", ".join(models) or "none"
            print(f"the server has the model {known}, the adapters are of {base}: is it the same?")

    def load(self, adapters: dict[str, Path]) -> str:
        """Load the folders under their names, again what the server had from the same folder; how
        many, in words. Raises `InputError` if a name is taken, before anything is loaded, and if
        the server refuses one."""
        paths = {name: str(folder.resolve()) for name, folder in adapters.items()}
        for name, path in paths.items():
            if self.loaded.get(name, path) != path:
                raise InputError(
                    f"the server at {self.url} has {name} already, from {self.loaded[name]}; "
                    "unload it there (POST /v1/unload_lora_adapter), or start the server again"
                )
        again = paths.keys() & self.loaded.keys()
        for name, path in tqdm(paths.items(), "load", unit="adapter"):
            if name in again:  # it reads the folder once only
                self._ask("post", "/unload_lora_adapter", lora_name=name)
            self._ask("post", "/load_lora_adapter", lora_name=name, lora_path=path)
        return f"{len(paths)} adapters loaded into {self.url}, {len(again)} of them again"

    def _ask(self, method: str, path: str, **body: str) -> object:
        """The server's answer. Raises `InputError` with its words if it refuses."""
        import openai

        how = {"body": body} if body else {}
        try:
            return getattr(self.client, method)(path, cast_to=object, **how)
        except openai.APIError as error:
            raise self._refusal(error, body.get("lora_name")) from None

    def _refusal(self, error: Exception, name: str | None) -> InputError:
        status, reason = getattr(error, "status_code", None), without_password(str(error))
        reason = " ".join(reason.replace(self.key or "\0", "...").split())[:300]
        start = START.format(rank=self.rank)
        if status is None:
            words = f"cannot be reached ({reason}); correct --serve, or start it: {start}"
        elif status in (401, 403):
            words = f"refuses the key ({reason}); give the right one in the variable OPENAI_API_KEY"
        elif status == 404 and name and name not in reason:
            words = f"loads no adapters while it runs ({reason}); start it so: {start}"
        else:
            words = (
                f"refuses {name or 'to list its models'} ({reason}); see its log; start: {start}"
            )
        return InputError(f"the server at {self.url} {words}")
