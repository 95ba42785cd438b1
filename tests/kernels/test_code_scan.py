from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress3g.errors import ConfigError
from compress3g.kernels import _library
from compress3g.kernels._pages import Pages
from compress3g.kernels.code_scan import ScanTable, quantise_table, scan, scan_batch, score
from compress3g.kernels.registry import use


def _brute(table, codes, offsets, pages=None):
    """The definition, a page and a token at a time."""
    rows = table.bytes.numpy()[:, : table.tokens].astype(int)
    out = []
    for p in range(len(offsets) - 1) if pages is None else pages:
        own = codes[offsets[p] : offsets[p + 1]]
        out.append(int(rows[own].max(0).sum()) if len(own) else -1)
    return out


def _table(rows, tokens, seed=0):
    g = torch.Generator().manual_seed(seed)
    return quantise_table(torch.randn(tokens, rows, generator=g))


@settings(max_examples=25, deadline=None)
@given(
    pages=st.integers(1, 30),
    longest=st.sampled_from([0, 1, 7, 8, 9, 130]),
    rows=st.sampled_from([1, 2, 100, 256, 257, 3000]),
    tokens=st.sampled_from([1, 7, 24, 31, 32, 33, 65, 100, 129, 257, 300, 1024]),
    seed=st.integers(0, 99),
)
def test_every_body_takes_maxima_per_token_and_adds_them(
    running, body, pages, longest, rows, tokens, seed
):
    random = np.random.default_rng(seed)
    offsets = np.concatenate([[0], random.integers(0, longest + 1, pages).cumsum()])
    codes = random.integers(0, rows, offsets[-1])
    codes = codes.astype(np.uint8 if rows <= 256 and seed % 2 else np.uint16)
    table = _table(rows, tokens, seed)
    some = random.integers(0, pages, 5)
    with running("code_scan", body):
        assert scan(table, codes, offsets).tolist() == _brute(table, codes, offsets)
        assert scan(table, codes, offsets, some).tolist() == _brute(table, codes, offsets, some)


@pytest.mark.parametrize("tokens", [24, 40])
@pytest.mark.parametrize("rows", [1500, 4096])
def test_pages_of_rising_and_of_mixed_codes_share_a_large_table(running, body, rows, tokens):
    random = np.random.default_rng(rows + tokens)
    pages = []
    for i in range(300):
        if i % 9 == 5:
            pages.append(random.integers(0, rows, 90))
        else:
            pages.append(np.sort(random.choice(rows, random.integers(0, 900), replace=False)))
    codes = np.concatenate(pages).astype(np.uint16)
    offsets = np.concatenate([[0], np.cumsum([len(page) for page in pages])])
    table = _table(rows, tokens)
    some = random.permutation(300)[:200]
    with running("code_scan", body):
        assert scan(table, codes, offsets).tolist() == _brute(table, codes, offsets)
        assert scan(table, codes, offsets, some).tolist() == _brute(table, codes, offsets, some)
        codes[offsets[7]] = rows
        with pytest.raises(ConfigError, match=f"code {rows} in a table of {rows} rows"):
            scan(table, codes, offsets)


@pytest.mark.parametrize("rows", [300, 65535])
def test_a_code_beyond_the_table_is_found_wherever_it_stands(running, body, rows):
    table = _table(rows, 3)
    with running("code_scan", body):
        for n in (1, 3, 4, 31, 32, 33, 64, 75):
            for at in range(n):
                codes = np.full(n + 1, rows - 1, np.uint16)  # what follows is the next page's
                codes[n] = 0
                offsets = np.array([0, n, n + 1])
                assert scan(table, codes, offsets).tolist() == _brute(table, codes, offsets)
                codes[at] = rows
                with pytest.raises(ConfigError, match=f"code {rows} in a table of {rows} rows"):
                    scan(table, codes, offsets)


@settings(max_examples=25, deadline=None)
@given(
    widths=st.lists(st.sampled_from([1, 8, 9, 24, 32, 33, 190, 200, 300, 1024]), max_size=9),
    rows=st.sampled_from([1, 100, 256, 300, 5000]),
    threads=st.sampled_from([1, 2]),
    seed=st.integers(0, 99),
)
def test_a_batch_equals_its_queries_one_by_one(running, body, corpus, widths, rows, threads, seed):
    data = corpus(pages=90, longest=120, rows=rows, tokens=1, dims=16, seed=seed)
    tables = [_table(rows, tokens, seed + i) for i, tokens in enumerate([24, *widths])]
    some = np.random.default_rng(seed).permutation(data.pages)[:40]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with running("code_scan", body):
            for pages in (None, some):
                together = scan_batch(tables, data.codes, data.offsets, pages)
                alone = [scan(table, data.codes, data.offsets, pages) for table in tables]
                assert torch.equal(together, torch.stack(alone))
    finally:
        torch.set_num_threads(before)


def test_many_pages_on_two_threads_equal_the_reference(two_threads, compiled, corpus):
    data = corpus(pages=3000, longest=40, rows=700, tokens=1, dims=8, seed=3)
    tables = [_table(700, 24, seed) for seed in range(16)]
    with use(code_scan="reference"):
        expected = scan_batch(tables, data.codes, data.offsets)
    with _library.use_isa(compiled):
        assert torch.equal(scan_batch(tables, data.codes, data.offsets), expected)
        assert torch.equal(scan(tables[3], data.codes, data.offsets), expected[3])


def test_only_the_set_of_codes_matters(running, body, corpus):
    data = corpus(pages=40, longest=300, rows=60, tokens=1, dims=16, seed=1)
    ends = zip(data.offsets, data.offsets[1:], strict=False)
    unique = [np.unique(data.codes[a:b]) for a, b in ends]
    counts = [len(u) for u in unique]
    assert sum(counts) < len(data.codes) / 2
    fewer = np.concatenate([[0], np.cumsum(counts)])
    tables = [_table(60, 24, seed) for seed in range(3)]
    with running("code_scan", body):
        expected = scan_batch(tables, data.codes, data.offsets)
        assert torch.equal(scan_batch(tables, np.concatenate(unique), fewer), expected)
        assert torch.equal(scan(tables[0], np.concatenate(unique), fewer), expected[0])


def test_scores_stay_within_the_rounding_of_the_table(running, body, corpus):
    data = corpus(pages=30, longest=50, rows=500, tokens=24, dims=32, seed=2)
    similarity = data.query @ data.centroids.T
    table = quantise_table(similarity)
    with running("code_scan", body):
        total = scan(table, data.codes, data.offsets)
    found = score(table, total).double().numpy()
    bound = 24 * float(similarity.max() - similarity.min()) / 510 + 1e-4  # float32 sums
    for p in range(data.pages):
        own = similarity[:, data.codes[data.offsets[p] : data.offsets[p + 1]]].astype(float)
        if own.shape[1]:
            assert abs(found[p] - own.max(1).sum()) <= bound
        else:
            assert found[p] == -np.inf


@given(
    tokens=st.integers(1, 70), rows=st.integers(1, 40), scale=st.sampled_from([0.0, 1e-30, 1, 1e30])
)
def test_the_table_is_the_nearest_level_and_padding_is_zero(tokens, rows, scale):
    similarity = np.random.default_rng(tokens).standard_normal((tokens, rows)) * scale
    similarity = similarity.astype(np.float32)
    table = quantise_table(similarity)
    assert table.bytes.shape == (rows, -(-tokens // 32) * 32)
    assert table.bytes.data_ptr() % 64 == 0
    assert not table.bytes[:, tokens:].any()
    back = table.low + table.scale * table.bytes[:, :tokens].double().numpy().T
    # Half a level, and the float32 rounding of the arithmetic before it.
    assert np.abs(back - similarity).max() <= table.scale * 0.501 + 1e-6 * scale


def test_memory_maps_and_read_only_arrays_are_scanned_in_place(running, body, corpus, tmp_path):
    data = corpus(pages=20, longest=50, rows=300, tokens=24, dims=8, seed=4)
    table = _table(300, 24)
    data.codes.tofile(tmp_path / "codes")
    mapped = np.memmap(tmp_path / "codes", np.uint16, "r")
    offsets = data.offsets.copy()
    offsets.flags.writeable = False
    with running("code_scan", body):
        expected = scan(table, torch.from_numpy(data.codes), torch.from_numpy(data.offsets))
        assert torch.equal(scan(table, mapped, offsets), expected)
        empty = scan(table, mapped[:0], np.zeros(1, np.int64))
        assert len(empty) == 0
        assert scan_batch([table], mapped, offsets, np.zeros(0, np.int64)).shape == (1, 0)


def _bad(name):
    codes, offsets, pages = np.array([0, 9, 3], np.uint16), np.array([0, 2, 3]), None
    if name == "code":
        codes[2] = 10
    elif name == "code in bytes":
        codes = np.array([0, 9, 255], np.uint8)
    elif name == "falling":
        offsets = np.array([0, 2, 1, 3])
    elif name == "negative":
        offsets = np.array([0, -(1 << 60), 3])
    elif name == "beyond":
        offsets = np.array([0, 1 << 60, 3])
    elif name == "end":
        offsets = np.array([0, 2, 4])
    elif name == "start":
        offsets = np.array([1, 2, 3])
    elif name == "none":
        offsets = np.zeros(0, np.int64)
    elif name == "page":
        pages = np.array([0, 2])
    elif name == "negative page":
        pages = np.array([-1])
    elif name == "huge page":
        pages = np.array([1 << 62])
    elif name == "dtype":
        codes = codes.astype(np.int32)
    elif name == "byte order":
        codes = codes.astype(">u2")
    elif name == "gaps":
        codes = np.zeros(6, np.uint16)[::2]
    elif name == "offset dtype":
        offsets = offsets.astype(np.int32)
    elif name == "axes":
        codes = codes[:, None]
    return codes, offsets, pages


BAD = {
    "code": "code 10 in a table of 10 rows",
    "code in bytes": "code 255 in a table of 10 rows",
    "falling": "offsets fall after page 1",
    "negative": "offsets fall after page 0",
    "beyond": "offsets fall after page 1",
    "end": "from 0 to 3 vectors, got 0 .. 4",
    "start": "got 1 .. 3",
    "none": "got none",
    "page": "page 2 does not exist: there are 2",
    "negative page": "page -1 does not exist",
    "huge page": "does not exist",
    "dtype": "codes must be uint8 or uint16 with 1 axes, got int32",
    "byte order": "cannot be used",
    "gaps": "not contiguous",
    "offset dtype": "offsets must be int64",
    "axes": r"of shape \(3, 1\)",
}


@pytest.mark.parametrize("name", BAD)
def test_input_that_would_lead_astray_is_one_line(running, body, name):
    codes, offsets, pages = _bad(name)
    table = _table(10, 5)
    with running("code_scan", body):
        for call in (scan, lambda t, *rest: scan_batch([t] * 3, *rest)):
            with pytest.raises(ConfigError, match=BAD[name]) as caught:
                call(table, codes, offsets, pages)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "value", "message"),
    [
        ((3, 4), float("nan"), "1 of 3 x 4 similarities are NaN"),
        ((3, 4), float("-inf"), "NaN or infinite"),
        ((0, 4), 0.0, "0 query tokens"),
        ((1025, 4), 0.0, "1025 query tokens"),
        ((3, 0), 0.0, "0 centroids"),
        ((1, 65537), 0.0, "65537 centroids"),
    ],
)
def test_tables_that_cannot_be_scanned_are_refused(shape, value, message):
    similarity = np.zeros(shape, np.float32)
    similarity.flat[:1] = value
    with pytest.raises(ConfigError, match=message):
        quantise_table(similarity)


def test_tables_made_by_hand_and_mixed_batches_are_refused():
    offsets = np.array([0, 1])
    codes = np.zeros(1, np.uint8)
    short = ScanTable(torch.zeros(4, 32, dtype=torch.uint8), 0.0, 1.0, 33)
    with pytest.raises(ConfigError, match="make it with quantise_table"):
        scan(short, codes, offsets)
    with pytest.raises(ConfigError, match="4 and 5 centroids"):
        scan_batch([_table(4, 3), _table(5, 3)], codes, offsets)
    with pytest.raises(ConfigError, match="no queries"):
        scan_batch([], codes, offsets)
    with pytest.raises(ConfigError, match="float32"):
        quantise_table(np.zeros((2, 2)))


def test_row_numbers_of_long_codes_are_unsigned():
    codes = torch.tensor([0, 1, 32767, 32768, 65535]).to(torch.uint16)
    pages = Pages.of(torch.tensor([0, 5]), None, codes=codes, rows=65536)
    assert pages.rows_of(torch.tensor([4, 3, 0])).tolist() == [65535, 32768, 0]
