"""Random adapters as large as the trained ones: `--adapters random`.

The control "any change of this size": neither a passage nor the data set's format is in them. Each
trained adapter has its own. A and B are normal; A has the norm of the trained A, and B is scaled so
that the delta `B A` has the norm of the trained delta (Frobenius), matrix by matrix.
"""

from pathlib import Path

import torch

from utils.experiment import Experiment, Work
from utils.files import hash_json
from utils.lora.bank import Adapter
from utils.processes import Processes
from utils.sources.derived import make_of_trained
from utils.store.folders import Shapes, load_adapter
from utils.store.links import Saver

Source = tuple[Path, int]  # the folder of the trained adapter, and the seed of the random one


def works(experiment: Experiment) -> list[Work]:
    """One adapter for each different trained one, whose data are its data."""
    return [work for work, _ in _drawn(experiment)]


def make(
    experiment: Experiment,
    works: list[Work],
    saver: Saver,
    processes: Processes,
    adapters_per_batch: int | None,
) -> None:
    """Draw an adapter for each that `encode.py` has trained; `InputError` if one is missing."""
    make_of_trained(experiment.trained, _drawn(experiment), _random, saver, processes)


def _drawn(experiment: Experiment) -> list[tuple[Work, Source]]:
    """The adapters to make, and what each is drawn from."""
    trained, seed = experiment.trained, experiment.recipe.seed
    own: dict[Path, Path] = {}  # the folder of a trained adapter -> that of the random one
    for data_type in experiment.records:
        both = zip(trained.passages(data_type), experiment.passages(data_type), strict=True)
        for questions in both:
            own |= {of: folder for (of, _), (folder, _) in zip(*questions, strict=True)}
    pieces = []
    for work in trained.works():
        data = hash_json(work.record)
        source = work.folders[0], int(hash_json([seed, data])[:15], 16)
        pieces.append((Work([], data, [own[folder] for folder in work.folders]), source))
    return pieces


def _random(source: Source, shapes: Shapes) -> Adapter:
    folder, seed = source
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for name, (A, B) in load_adapter(folder, shapes).items():
        new_A, new_B = (torch.randn(one.shape, generator=generator) for one in (A, B))
        new_A *= A.norm() / new_A.norm()
        size = delta_norm(new_A, new_B)
        drawn[name] = (new_A, new_B * (delta_norm(A, B) / size) if size else 0 * new_B)
    return drawn


def delta_norm(A: torch.Tensor, B: torch.Tensor) -> float:
    """The Frobenius norm of `B A` (A `[rank, in]`, B `[out, rank]`), without making that matrix:
    its square is the sum over `(B^T B) * (A A^T)`."""
    A, B = A.double(), B.double()
    return float(((B.mT @ B) * (A @ A.mT)).sum().clamp_min(0).sqrt())
