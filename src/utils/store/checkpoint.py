"""An unfinished training of one adapter on the disk, so that a killed one goes on."""

import json
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

    Every `save_steps` steps `path` gets A, B, AdamW's moments (`[1, …]` each), all `losses`, and as
    metadata the run's `settings`. The first one takes the place of the folder `old`, if any: then
    nothing is resumed, but from there on a stopped run goes on.
    """

    def __init__(
        self, path: Path, settings: dict, save_steps: int, steps: int, old: Path | None = None
    ):
        self.path, self.settings, self.save_steps, self.old = path, settings, save_steps, old
        self.losses: list[float] = []
        self.bar = tqdm(total=steps, unit="step", desc="warm-up")

    def resume(self, state: State) -> None:
        """Put the saved state in place, if any; `InputError` if it is damaged or another run's."""
        if self.old or not self.path.exists():
            return
        what = f"the unfinished training in {relative(self.path)}"
        remedy = "use the same settings to go on, or --overwrite to start again"
        try:
            with safe_open(self.path, framework="pt") as file:
                made_with = json.loads(file.metadata()["settings"])
                refuse_difference(what, made_with, self.settings, remedy)
                saved = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise InputError(f"{what} cannot be read ({error}); use --overwrite") from None
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
        if state.steps % self.save_steps == 0:
            tensors = {key: tensor.cpu() for key, tensor in _tensors(state).items()}
            tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64)
            with writing_file(self.path) as temporary:
                save_file(tensors, temporary, metadata={"settings": json.dumps(self.settings)})
            if self.old:
                remove_folder(self.old)
        self.bar.set_postfix(loss=self.losses[-1], refresh=False)
        self.bar.update()


def _tensors(state: State) -> dict[str, torch.Tensor]:
    """What a checkpoint holds of a state, by its name in the file."""
    of = {"value": state.parameters, "exp_avg": state.averages, "exp_avg_sq": state.square_averages}
    return {f"{i}.{name}": tensor for name in of for i, tensor in enumerate(of[name])}
