"""Vision-language encoders by colpali-engine: ColPali, ColQwen2, ColQwen2.5, ColIdefics3."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int16, Int64
from torch import Tensor

from ..._compat.torchvision_cpu import declare_operators
from ...errors import ConfigError, DocumentError, require
from ..config import SignalName
from ..pages import LARGEST_SIDE, RESOLUTION, PageImage
from ..vectors import PATCH, SPECIAL, PageVectors, normalise
from .saliency import attention_signals, watch_attention
from .weights import pretrained, weights_digest

Ids = Int64[np.ndarray, "n"]
Places = Int16[np.ndarray, "n 2"]


def _square_places(ids: Ids, image: int, processor: Any, grid: Any) -> Places:
    """One picture of as many rows as columns (PaliGemma)."""
    where = np.flatnonzero(ids == image)
    return _row_major(ids, where, math.isqrt(len(where)))


def _merged_places(ids: Ids, image: int, processor: Any, grid: Any) -> Places:
    """Rows and columns follow the picture's shape; the model merges neighbours (Qwen)."""
    columns = int(grid[2]) // int(processor.image_processor.merge_size)
    return _row_major(ids, np.flatnonzero(ids == image), columns)


def _tiled_places(ids: Ids, image: int, processor: Any, grid: Any) -> Places:
    """Tiles in rows and columns, then the whole page small (Idefics3).

    The tiles have places; the small page has them only when it is alone.
    """
    names = processor.tokenizer.convert_ids_to_tokens(ids.tolist())
    side = math.isqrt(int(processor.image_seq_len))
    places = np.full((len(ids), 2), -1, np.int16)
    tile: tuple[int, int] | None = None
    split = any(_TILE.fullmatch(n) for n in names)
    seen = 0
    for i, name in enumerate(names):
        found = _TILE.fullmatch(name)
        if found:
            tile, seen = (int(found[1]) - 1, int(found[2]) - 1), 0
        elif name == "<global-img>":
            tile, seen = None if split else (0, 0), 0
        elif ids[i] == image:
            if tile is not None:
                row, column = divmod(seen, side)
                places[i] = tile[0] * side + row, tile[1] * side + column
            seen += 1
    return places


_TILE = re.compile(r"<row_(\d+)_col_(\d+)>")


def _row_major(ids: Ids, where: Int64[np.ndarray, "p"], columns: int) -> Places:
    places = np.full((len(ids), 2), -1, np.int16)
    if len(where):
        places[where] = np.stack(divmod(np.arange(len(where)), columns), 1)
    return places


@dataclass(frozen=True, slots=True)
class Family:
    """Classes of colpali-engine, what model names look like, and where image tokens lie.

    projection: the layer that makes vectors, not yet of length one.
    """

    model: str
    processor: str
    pattern: str
    places: Callable[[Ids, int, Any, Any], Places]
    projection: str = "custom_text_proj"


FAMILIES = {
    "colqwen2_5": Family("ColQwen2_5", "ColQwen2_5_Processor", r"colqwen2[._]5", _merged_places),
    "colqwen2": Family("ColQwen2", "ColQwen2Processor", r"colqwen2(?![._]5)", _merged_places),
    "colidefics3": Family(
        "ColIdefics3", "ColIdefics3Processor", r"colidefics3|colsmol", _tiled_places, "linear"
    ),
    "colpali": Family("ColPali", "ColPaliProcessor", r"colpali", _square_places),
}


def family_of(name: str) -> tuple[str, str] | None:
    """Family and model of `FAMILY:MODEL`, or of a model that its name gives away.

    >>> family_of("vidore/colqwen2.5-v0.2"), family_of("colpali:folder"), family_of("text")
    (('colqwen2_5', 'vidore/colqwen2.5-v0.2'), ('colpali', 'folder'), None)
    """
    family, colon, model = name.partition(":")
    if colon and family in FAMILIES:
        return family, model
    last = os.path.basename(name.rstrip("/")).lower()
    for key, known in FAMILIES.items():
        if re.match(known.pattern, last):
            return key, name
    return None


class VisionEncoder:
    """Pages as pictures: one unit vector per image token and per token of the fixed prompt.

    model, processor: of colpali-engine, see `load_vision_encoder`. Padding is dropped; image
    tokens are of kind PATCH and know their place, the others are SPECIAL. Queries get the
    augmentation tokens that the models were trained with.
    """

    grid: tuple[int, int] | None = None

    def __init__(
        self,
        family: str,
        model: Any,
        processor: Any,
        *,
        name: str,
        signals: Sequence[SignalName] = ("indegree",),
    ) -> None:
        self._family, self._processor = FAMILIES[family], processor
        self._model = model.eval().requires_grad_(False)
        self._signals = tuple(signals)
        self._image = int(processor.image_token_id)
        self.name = name
        self._projection = getattr(model, self._family.projection)
        self.dim = int(self._projection.out_features)
        self.fingerprint = (
            f"{family} {weights_digest(model)} {str(model.dtype).removeprefix('torch.')}"
            f" {_preprocessing(processor)}"
        )

    def encode_pages(self, pages: Sequence[PageImage]) -> list[PageVectors]:
        """See Encoder: float16, with the signals asked for."""
        batch = self._processor.process_images([page.image for page in pages])
        vectors, told = self._run(batch, self._signals)
        grids = batch.get("image_grid_thw", [None] * len(pages))
        out = []
        for i, grid in enumerate(grids):
            real = batch["attention_mask"][i].bool().cpu().numpy()
            ids = batch["input_ids"][i].cpu().numpy()[real]
            places = self._family.places(ids, self._image, self._processor, grid)
            kind = np.where(ids == self._image, PATCH, SPECIAL)
            x = normalise(vectors[i][real]).astype(np.float16)
            signals = {name: s[i][real] for name, s in told.items()}
            out.append(PageVectors(x, None, places, kind, signals))
        return out

    def encode_queries(self, queries: Sequence[str]) -> list[Float32[np.ndarray, "_ d"]]:
        """See Encoder. Raises DocumentError for an empty query."""
        if not all(query.strip() for query in queries):
            raise DocumentError("the query is empty: give at least one word")
        found = []
        for query in queries:
            batch = self._processor.process_queries(texts=[query])
            vectors, _ = self._run(batch, ())
            found.append(normalise(vectors[0][batch["attention_mask"][0].bool().cpu().numpy()]))
        return found

    def query_tokens(self, query: str) -> list[str]:
        """See Encoder: the tokens of the models' prompt and of augmentation included."""
        batch = self._processor.process_queries(texts=[query])
        ids = batch["input_ids"][0][batch["attention_mask"][0].bool()].tolist()
        tokenizer = self._processor.tokenizer
        names = tokenizer.convert_ids_to_tokens(ids)
        # Byte-level names are no text, and decoding alone loses which token begins a word.
        texts = [tokenizer.decode([i]).strip() for i in ids]
        return [
            f" {text}" if name[0] in _BLANKS else text or name
            for text, name in zip(texts, names, strict=True)
        ]

    @torch.inference_mode()
    def _run(
        self, batch: Any, signals: Sequence[SignalName]
    ) -> tuple[Float32[np.ndarray, "b n d"], dict[str, Float32[np.ndarray, "b n"]]]:
        inputs = batch.to(self._model.device)
        valid = inputs["attention_mask"].bool()
        norms: list[Float[Tensor, "b n"]] = []
        told: dict[str, Float[Tensor, "b n"]] = {}
        hook = self._projection.register_forward_hook(
            lambda module, given, result: norms.append(result.float().norm(dim=-1))
        )
        try:
            if watched := attention_signals(signals):
                with watch_attention(self._model, valid, watched) as seen:
                    vectors = self._model(**inputs)
                told |= seen.results
            else:
                vectors = self._model(**inputs)
        finally:
            hook.remove()
        if "norm" in signals:
            told["norm"] = norms[-1]
        return vectors.float().cpu().numpy(), {n: s.float().cpu().numpy() for n, s in told.items()}


_BLANKS = "▁Ġ"  # how names of tokens begin that begin a word, by SentencePiece and byte-level BPE


def _preprocessing(processor: Any) -> str:
    """Eight hex digits of all settings of the processor that change vectors."""
    settings = {
        "image": processor.image_processor.to_dict(),
        "prompt": getattr(processor, "visual_prompt_prefix", ""),
        "query": [getattr(processor, n, "") for n in ("query_prefix", "query_augmentation_token")],
        "resolution": (RESOLUTION, LARGEST_SIDE),
    }
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def load_vision_encoder(
    family: str,
    model: str,
    *,
    signals: Sequence[SignalName] = ("indegree",),
    device: str | None = None,
) -> VisionEncoder:
    """A model of a family from a folder or the hub; bfloat16 on a GPU, else float32.

    Raises ConfigError when it cannot be loaded, MissingExtra.
    """
    if family not in FAMILIES:
        raise ConfigError(f"no family {family!r} of encoders: {', '.join(FAMILIES)}")
    declare_operators()
    models = require("colpali_engine.models", extra="colpali", purpose=f"encoder {family}")
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    precision = torch.bfloat16 if where.startswith("cuda") else torch.float32
    folder = os.path.abspath(model) if os.path.isdir(model) else model
    known = FAMILIES[family]
    loaded = pretrained(getattr(models, known.model), folder, dtype=precision)
    processor = pretrained(getattr(models, known.processor), folder)
    return VisionEncoder(
        family, loaded.to(where), processor, name=f"{family}:{folder}", signals=signals
    )
