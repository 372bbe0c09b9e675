"""Saving adapters, each different one once: folders of equal adapters share files by hard link.

An adapter depends on its data, settings and base, not on the question: one that exists, also in
another data type of the experiment, is not trained again.
"""

import errno
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from utils.experiment import Experiment, Work
from utils.files import refuse_link, remove_folder, writing_folder
from utils.journal import first_difference
from utils.lora.bank import Adapter
from utils.processes import Processes
from utils.running import InputError
from utils.store.folders import (
    adapter_files,
    is_stored,
    read_training,
    read_weights,
    save_adapter,
    stored_adapters,
)

# another file system, one without links, too many links, links to another user's files forbidden
NO_LINK = {errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.ENOSYS}


def link_adapter(source: Path, folder: Path, replace: bool = False) -> int:
    """Make `folder` an adapter of the same bytes as `source`; how many bytes links saved. It
    appears whole or not at all. An adapter that is in `folder` stays, unless `replace`."""
    saved = 0
    with writing_folder(folder, None if replace else is_stored) as temporary:
        for name in adapter_files(source):
            try:
                os.link(source / name, temporary / name)
                saved += (temporary / name).stat().st_size
            except OSError as error:
                if error.errno not in NO_LINK:
                    raise
                shutil.copyfile(source / name, temporary / name)
    return saved


class Saver:
    """Writes adapters into the `missing` folders, one group while the next one is trained.

    `settings` made them, the other adapters are from `bases`. Used in a `with` block, at whose end
    all is on the disk; printed, it counts what was linked instead of trained.
    """

    def __init__(
        self,
        experiment: Experiment,
        missing: set[Path],
        bases: set[str],
        settings: dict,
        processes: Processes,
        replace: bool,
    ):
        self.experiment, self.missing, self.bases = experiment, missing, bases
        self.settings, self.processes, self.replace = settings, processes, replace
        self.trained, self.saved = 0, []  # the bytes that each linked folder saved, 0 of a copy
        self.bar, self.old = None, set()
        self.writer, self.writing = ThreadPoolExecutor(1), Future()
        self.writing.set_result(None)

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, *error: object) -> None:
        with self.writer:
            if error[0] is None:
                self.writing.result()  # raises what went wrong
        if self.bar:
            self.bar.close()

    def __str__(self) -> str:
        copied = self.saved.count(0)
        words = f", {copied} copied, as links are impossible" if copied else ""
        linked, megabytes = len(self.saved) - copied, sum(self.saved) / 1e6
        return f"{linked} linked to an equal one ({megabytes:.1f} MB saved){words}"

    def share_existing(self, works: list[Work], base: str) -> None:
        """Fill missing folders with equal adapters of the experiment that are from `base`."""
        lacking = {(work.data, work.group): work for work in works if self.needs(work)}
        data_types = sorted(self.experiment.folder.glob("[!.]*")) if lacking else []
        for source in (folder for adapters in data_types for folder in stored_adapters(adapters)):
            try:
                made_with = read_training(source)
                made_from = (made_with.pop("data", None), made_with.pop("group", None))
                made_with.pop("beside", None)  # the group says it too
                work = lacking.get(made_from)
                if work is None or first_difference(made_with, {**self.settings, "base": base}):
                    continue
                read_weights(source)
            except InputError:  # a damaged one is trained again
                continue
            for folder in self.needs(lacking.pop(made_from)):
                self.saved.append(link_adapter(source, folder, self.replace))
                self.missing.discard(folder)
                source = folder  # it can be linked to, even if the first one was a copy

    def needs(self, work: Work) -> list[Path]:
        """The folders of `work` that have no adapter yet."""
        return [folder for folder in work.folders if folder in self.missing]

    def begin(self, works: list[Work], base: str) -> None:
        """Say which works this process makes, and from which base.

        What they replace is removed when the first new one is there: an interrupted `--overwrite`
        goes on without it. `InputError` if other adapters of the experiment have another base.
        """
        if others := self.bases - {base}:
            raise InputError(
                f"adapters of this experiment were trained from the base {min(others)}, but it is "
                f"{base} now: it was replaced; train all again with --overwrite"
            )
        self.settings = {**self.settings, "base": base}
        mine = {folder for work in works for folder in work.folders}
        for folder in sorted(mine & self.missing):
            refuse_link(folder)  # before the first one is trained
        self.bar = self.processes.bar("encode", "passage", len(mine), len(mine & self.missing))
        self.old = mine & self.missing if self.replace else set()

    def tell(self, news: str) -> None:
        """Show `news` beside the bar, which moves only when a group is finished."""
        self.bar.set_postfix_str(news, refresh=False)
        self.bar.update(0)

    def save(self, works: list[Work], adapters: list[Adapter] | torch.Tensor) -> None:
        """Write the adapters of `works`, in this order; with a pool their weights `[N, L, M]`."""
        self.writing.result()
        self.writing = self.writer.submit(self._save, works, adapters)

    def _save(self, works: list[Work], adapters: list[Adapter] | torch.Tensor) -> None:
        for work, adapter in zip(works, adapters, strict=True):
            if not (lacking := self.needs(work)):  # trained along, to keep the group as it was
                continue
            alpha, base_model = self.experiment.recipe.lora_alpha, self.experiment.base_model
            made_with = {**self.settings, **work.record}
            dtype = getattr(torch, self.settings["save_dtype"])
            save_adapter(adapter, lacking[0], alpha, base_model, made_with, dtype, self.replace)
            self.trained += 1
            for folder in sorted(self.old - {lacking[0]}):
                remove_folder(folder)
            self.old = set()
            for folder in lacking[1:]:
                self.saved.append(link_adapter(lacking[0], folder, self.replace))
            self.bar.update(len(lacking))
