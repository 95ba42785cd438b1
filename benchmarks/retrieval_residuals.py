"""Residual codecs without stage 1: squared error, noise of scores, recall, on two corpora.

Pages are 1,030 consecutive token vectors of MiniLM, queries the first 12 tokens of those that have
so many; every page is scored with decoded vectors. Beside our codecs stand faiss's product
quantisers of the residual as it is, in as many bytes. `noise` is the deviation of a page's score
from the exact one, less its mean over the exact top 50, in units of one inner product. Queries 1 to
50 of Cranfield are those that retrieval_peers.py has long used: the column without them is what
codecs are chosen by, and SciFact.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
import torch
from _corpora import cranfield, data_folder, scifact, token_vectors
from _report import parser, report
from retrieval_peers import PAGE, WORDS, long_pages

from compress3g.retrieval.codebook import Codebook, Sampler, sample_size, train_codebook
from compress3g.retrieval.residual import fit_codec
from compress3g.retrieval.vectors import normalise

SEED, K, TOP, SEEN = 0, 4096, 10, 50
CODECS = ("res1", "pq16", "res2", "pq32", "res4")


def page_scores(x: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """MaxSim [queries, pages] of vectors [pages * PAGE, D]."""
    asked = torch.from_numpy(queries.reshape(-1, queries.shape[2]))
    found = []
    for page in torch.from_numpy(x).view(-1, PAGE, x.shape[1]):
        found.append((page @ asked.T).amax(0).view(-1, WORDS).sum(1))
    return torch.stack(found, 1).numpy()


def plain_pieces(r: np.ndarray, sample: np.ndarray, pieces: int) -> np.ndarray:
    """Residuals by faiss's product quantiser, from the residuals of the sample."""
    quantiser = faiss.ProductQuantizer(r.shape[1], pieces, 8)
    quantiser.cp.seed = SEED
    quantiser.train(sample)
    decoded: np.ndarray = quantiser.decode(quantiser.compute_codes(r))
    return decoded


def decoded_by(x: np.ndarray, sample: np.ndarray, book: Codebook) -> Any:
    """Name, bytes a vector besides the code, and decoded vectors of every codec."""
    codes, first = book.assign(x), book.assign(sample)
    for name in CODECS:
        codec = fit_codec(name, sample, book, SEED)
        stored, inv_norm = codec.encode(x, codes)
        size = stored.shape[1] + (0 if inv_norm is None else 2)
        yield name, size, codec.decode(codes, stored, inv_norm)
    c, r = book.centroids[codes], sample - book.centroids[first]
    for pieces in (16, 32):
        whole = c + plain_pieces(x - c, r, pieces)
        yield f"faiss PQ{pieces}, inverse norm", pieces + 2, normalise(whole)


def measure(x: np.ndarray, queries: np.ndarray, k: int, seen: int) -> dict[str, Any]:
    """Rows by codec."""
    sampler = Sampler(sample_size(k), SEED)
    for page in x.reshape(-1, PAGE, x.shape[1]):
        sampler.add(page.astype(np.float16))
    sample = sampler.sample()
    book = train_codebook(sample, k, SEED)
    exact = page_scores(x, queries)
    order = np.argsort(-exact, axis=1, kind="stable")
    rows = {}
    for name, size, decoded in decoded_by(x, np.asarray(sample, np.float32), book):
        scores = page_scores(decoded, queries)
        off = np.take_along_axis(scores - exact, order[:, :50], 1)
        off -= off.mean(1, keepdims=True)
        found = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
        each = [len(set(a) & set(b)) / TOP for a, b in zip(found, order[:, :TOP], strict=True)]
        rows[name] = {
            "bytes": size,
            "squared_error": float(((decoded - x) ** 2).sum(1).mean()),
            "noise": float(off[seen:].std()),
            "recall": float(np.mean(each[seen:])),
            "recall_error": float(np.std(each[seen:]) / len(each[seen:]) ** 0.5),
        }
        print(
            f"{name:26}{size:6}{rows[name]['squared_error']:10.4f}{rows[name]['noise']:8.4f}"
            f"{rows[name]['recall']:8.3f} +- {rows[name]['recall_error']:.3f}", flush=True,
        )  # fmt: skip
    return rows


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    folder, rows = data_folder(), {}
    if folder is None:
        print("skipped: COMPRESS3G_DATA names no folder with retrieval/cranfield and scifact")
        return
    pages, k = (40, 256) if options.quick else (243, K)
    for corpus in (cranfield(folder),) if options.quick else (cranfield(folder), scifact(folder)):
        x, queries = long_pages(token_vectors(corpus), pages, 1000)
        x = x.reshape(-1, x.shape[2])
        print(f"\n{corpus.name}: {len(x) // PAGE} pages, {len(queries)} queries, {k} centroids")
        print(f"{'':26}{'bytes':>6}{'|x - x~|^2':>10}{'noise':>8}{'R@10':>8}")
        rows[corpus.name] = measure(x, queries, k, SEEN if corpus.name == "cranfield" else 0)
    report("retrieval_residuals", options, seeds=[SEED], goals=[], rows=rows)


if __name__ == "__main__":
    main()
