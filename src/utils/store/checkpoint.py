"""An unfinished training on the disk, so that a killed one goes on."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from utils.files import relative, remove_folder, writing_file
from utils.journal import refuse_difference
from utils.lora.training import State
from utils.running import InputError


class Checkpoint:
    """The `resume` and `after_step` of a training of `steps` steps, with its progress bar.

    Every `save_steps` steps and after the last `path` gets A, B, AdamW's moments (`[1, …]` each),
    all `losses`, and as metadata the run's `settings`. The first one takes the place of the folders
    `old`, if any: then nothing is resumed, but from there on a stopped run goes on.
    """

    def __init__(
        self,
        path: Path,
        settings: dict,
        save_steps: int,
        steps: int,
        old: Sequence[Path] = (),
        title: str = "warm-up",
    ):
        self.path, self.settings, self.save_steps, self.old = path, settings, save_steps, old
        self.losses: list[float] = []
        self.bar = tqdm(total=steps, unit="step", desc=title)

    def resume(self, state: State) -> None:
        """Put the saved state in place, if any; `InputError` if it is damaged or another run's."""
        if self.old or not self.path.exists():
            return
        what = f"the unfinished training in {relative(self.path)}"
        remedy = "use the same settings to go on, or --overwrite to start again"
        refuse_difference(what, begun_with(self.path), self.settings, remedy)
        with _opened(self.path) as file:
            saved = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        for key, tensor in _tensors(state).items():
            tensor.copy_(saved[key])
        self.losses = saved["losses"].tolist()
        state.steps = len(self.losses)
        self.bar.update(state.steps)

    def after_step(self, state: State, losses: torch.Tensor) -> None:
        """Keep the loss `[1]` of a step; it must be finite. If it is time, write the state."""
        self.losses.append(losses.item())
        if not losses.isfinite():
            loss = f"the loss of step {state.steps} is {losses.item()}"
            remedy = "start again with --overwrite and a smaller --learning_rate or --dtype float32"
            raise InputError(f"{loss}; {remedy}")
        if state.steps % self.save_steps == 0 or state.steps == self.bar.total:
            tensors = {key: tensor.cpu() for key, tensor in _tensors(state).items()}
            tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64)
            with writing_file(self.path) as temporary:
                save_file(tensors, temporary, metadata={"settings": json.dumps(self.settings)})
            for folder in self.old:
                remove_folder(folder)
            self.old = ()
        self.bar.set_postfix(loss=self.losses[-1], refresh=False)
        self.bar.update()


def begun_with(path: Path) -> dict | None:
    """The settings of the unfinished training in `path`, None without one."""
    if not path.exists():
        return None
    with _opened(path) as file:
        return json.loads(file.metadata()["settings"])


@contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        what = f"the unfinished training in {relative(path)}"
        raise InputError(f"{what} cannot be read ({error}); use --overwrite") from None


def _tensors(state: State) -> dict[str, torch.Tensor]:
    """What a checkpoint holds of a state, by its name in the file."""
    of = {"value": state.parameters, "exp_avg": state.averages, "exp_avg_sq": state.square_averages}
    return {f"{i}.{name}": tensor for name in of for i, tensor in enumerate(of[name])}
