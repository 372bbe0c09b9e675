"""Engine `dense`: exact cosine by any `sentence-transformers` encoder, an optional package."""

import argparse
import hashlib
import json
from array import array
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from textwrap import shorten
from typing import Any

from utils.files import relative, writing_folder
from utils.layout import folder_name, index_folder
from utils.retrieval.corpus import (
    SCORE_TOLERANCE,
    different_texts,
    hashed_line,
    read_corpus,
    settle_ties,
)
from utils.retrieval.folders import exists_already, read_manifest, write_manifest
from utils.running import InputError

VECTORS, PASSAGES, ENDS = "vectors.f32", "passages.jsonl", "ends.u64"  # ends: of the JSON lines
BATCH, SCORES = 512, 2**28  # passages that are encoded, scores that are held (1 GB) at a time


def add_flags(parser: argparse.ArgumentParser, building: bool) -> None:
    """`--dense_model`."""
    group = parser.add_argument_group("dense retrieval (with --engine dense)")
    group.add_argument(
        "--dense_model", help="sentence-transformers encoder, hub id or folder (only for dense)"
    )


def build(corpus: Path, options: argparse.Namespace) -> tuple[int, str]:
    """Encode `corpus` into `index/{index_name}` -> (rows, 0 if it was there; that folder)."""
    folder = index_folder(options.index_name)
    encoder, made_of = _load(options.dense_model)
    if exists_already(folder, options.overwrite, corpus, made_of, _flags(options)):
        return 0, relative(folder)
    rows, ends, content = read_corpus(corpus), array("Q", [0]), hashlib.sha256()
    with writing_folder(folder) as temporary:
        with open(temporary / VECTORS, "wb") as vectors, open(temporary / PASSAGES, "wb") as lines:
            while batch := list(islice(rows, BATCH)):
                texts = [f"{title}\n{text}" if title else text for _, text, title in batch]
                vectors.write(_unit_vectors(encoder.encode_document, texts).tobytes())
                for row in batch:
                    content.update(hashed_line(row))
                    passage_id, text, title = row
                    hit = {"id": passage_id, "title": title, "text": text}
                    lines.write(json.dumps(hit).encode() + b"\n")
                    ends.append(lines.tell())
        (temporary / ENDS).write_bytes(ends.tobytes())
        made_of |= {"source": corpus.name, "content": content.hexdigest()[:16]}
        write_manifest(temporary, made_of | {"rows": len(ends) - 1})
    return len(ends) - 1, relative(folder)


def _flags(options: argparse.Namespace) -> str:
    return f"--engine dense --dense_model {options.dense_model} "


class DenseIndex:
    """The index in `index/{index_name}`; `InputError` if `--dense_model` is not what made it."""

    def __init__(self, options: argparse.Namespace) -> None:
        import numpy

        folder = index_folder(options.index_name)
        self._encoder, made_by = _load(options.dense_model)
        manifest = read_manifest(folder, made_by, _flags(options))
        self.identity = made_by | {"rows": manifest["rows"], "content": manifest["files"][PASSAGES]}
        self._vectors = numpy.memmap(folder / VECTORS, "float32", "r").reshape(manifest["rows"], -1)
        self._passages = numpy.memmap(folder / PASSAGES, "uint8", "r")
        self._ends = numpy.memmap(folder / ENDS, "uint64", "r")

    def search(self, questions: list[str], topk: int) -> list[list[dict]]:
        """See `PassageIndex.search`; every question is compared with every passage."""
        import numpy

        vectors = _unit_vectors(self._encoder.encode_query, questions)
        blocks = numpy.array_split(vectors, 1 + len(vectors) * len(self._vectors) // SCORES)
        return [self._best(scores, topk) for block in blocks for scores in block @ self._vectors.T]

    def _best(self, scores: Any, topk: int, count: int = 0) -> list[dict]:
        """The best passages by their `scores` `[rows]`; only the `count` largest are sorted."""
        import numpy

        count = min(count or 2 * topk + 10, len(scores))
        least = numpy.partition(scores, -count)[-count]
        # also those which could tie with the last one and come before it in the corpus
        rows = numpy.flatnonzero(scores >= least - SCORE_TOLERANCE * abs(least))
        settled = settle_ties(zip(scores[rows].tolist(), rows.tolist(), rows.tolist(), strict=True))
        best = different_texts((self._hit(row, score) for score, row, _ in settled), topk)
        enough = len(best) == topk and best[-1]["score"] >= least
        return best if enough or count == len(scores) else self._best(scores, topk, 4 * count)

    def passages(self) -> Iterator[dict]:
        """See `PassageIndex.passages`."""
        return map(self._stored, range(len(self._vectors)))

    def _hit(self, row: int, score: float) -> dict:
        return self._stored(row) | {"score": score}

    def _stored(self, row: int) -> dict:
        start, end = self._ends[row : row + 2]
        return json.loads(self._passages[start:end].tobytes())


open_index = DenseIndex


def _load(name: str | None) -> tuple[Any, dict]:
    """The encoder, and what a manifest says of it: its name and a hash of its weights."""
    if not name:
        raise InputError("--engine dense needs --dense_model: an encoder's hub id or folder")
    try:
        import torch
        from sentence_transformers import SentenceTransformer

        encoder = SentenceTransformer(name, model_kwargs={"use_safetensors": True})
    except Exception as error:  # of whatever the model's files do to three libraries
        raise InputError(
            f"--dense_model {name} cannot be loaded ({shorten(str(error), 300)}); give the hub "
            "id or folder of an encoder, after: pip install 'sentence-transformers>=5'"
        ) from None
    sha, name = hashlib.sha256(), folder_name(name)
    for weights in encoder.parameters():
        sha.update(weights.detach().cpu().flatten().view(torch.uint8).numpy())
    return encoder, {"engine": "dense", "dense_model": name, "encoder": sha.hexdigest()}


def _unit_vectors(encode: Any, texts: list[str]) -> Any:
    """Vectors `[texts, width]` in single precision; half a surrogate pair counts as "?"."""
    texts = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
    return encode(texts, normalize_embeddings=True, show_progress_bar=False).astype("float32")
