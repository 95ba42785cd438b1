"""The addresses: the page, /api/search, /api/page/ID.webp, /api/heatmap/ID, /healthz.

Everything that computes or reads runs in a pool of few threads, never in the event loop. Errors
are {"error": one line}: 400 what was asked, 404 what is not there, 503 what the index suffers.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from fastapi import FastAPI, Request
from fastapi import Path as InPath
from fastapi import Query as InQuery
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, Response
from starlette.exceptions import HTTPException

from ...errors import Compress3GError, FormatError, LockError
from ..catalog import DocumentRow
from ..heatmap import heat_layer, snippet
from ..hits import Hit
from ..search_config import SearchConfig
from .pictures import Pictures
from .reader import Reader, heat_of, token_scores

_STATIC = Path(__file__).parent / "static"
_FILES = ("style.css", "script.js", "icon.svg")
_LAYER, _TALLEST = 1000, 4000  # pixels across of a heat map, and from top to bottom
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_LOCAL = ("localhost", "127.0.0.1", "[::1]")
_log = logging.getLogger(__name__)
T = TypeVar("T")

PageId = Annotated[int, InPath(ge=0, lt=1 << 62)]
Text = Annotated[str, InQuery(max_length=8192)]


def make_app(reader: Reader, pictures: Pictures, pool: Executor, *, hosts: bool = True) -> FastAPI:
    """The application.

    hosts: refuse names that are not this machine's: a page elsewhere may have its own name point
    here, and would then read documents through the browser of whoever visits it.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    _add_page(app)
    _add_search(app, reader, pictures, pool)
    _add_pictures(app, reader, pictures, pool)
    _add_errors(app)

    @app.middleware("http")
    async def guard(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        host = request.headers.get("host", "")
        if hosts and host.rpartition(":")[0] not in _LOCAL and host not in _LOCAL:
            return _error(400, f"host {host!r} is not this machine: use http://127.0.0.1")
        response = await answer(request)
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    return app


async def _in(pool: Executor, work: Callable[..., T], *arguments: Any, **named: Any) -> T:
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(pool, partial(work, *arguments, **named))


def _add_page(app: FastAPI) -> None:
    @app.get("/")
    async def index() -> Response:
        return FileResponse(_STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    @app.get("/static/{name}")
    async def static(name: str) -> Response:
        if name not in _FILES:
            raise HTTPException(404)
        return FileResponse(_STATIC / name, headers={"Cache-Control": "no-cache"})


def _add_search(app: FastAPI, reader: Reader, pictures: Pictures, pool: Executor) -> None:
    @app.get("/healthz")
    async def health() -> Response:
        return _json(await _in(pool, _health, reader))

    @app.get("/api/search")
    async def search(
        q: Text, where: Text = "", k: Annotated[int, InQuery(ge=1, le=100)] = 10
    ) -> Response:
        return _json(await _in(pool, _search, reader, pictures, q, where, k))


def _add_pictures(app: FastAPI, reader: Reader, pictures: Pictures, pool: Executor) -> None:
    @app.get("/api/page/{page}.webp")
    async def page_picture(page: PageId, size: Literal["thumb", "full"] = "thumb") -> Response:
        document, number = await _in(pool, _located, reader, page)
        data, source = await _in(pool, pictures.webp, document, number, size)
        kept = "private, max-age=3600" if source == "present" else "no-store"
        return Response(data, media_type="image/webp", headers={"Cache-Control": kept})

    @app.get("/api/heatmap/{page}")
    async def heatmap(
        page: PageId, q: Text, token: Annotated[int | None, InQuery(ge=0)] = None
    ) -> Response:
        data = await _in(pool, _heatmap, reader, pictures, page, q, token)
        return Response(data, media_type="image/png", headers={"Cache-Control": "no-store"})


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        told = f"nothing at {request.url.path}" if error.status_code == 404 else error.detail
        return _error(error.status_code, error.detail if error.detail != "Not Found" else told)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return _error(400, f"{first['loc'][-1]}: {first['msg'][:1].lower()}{first['msg'][1:]}")

    @app.exception_handler(Compress3GError)
    async def known(request: Request, error: Compress3GError) -> Response:
        status = 503 if isinstance(error, FormatError | LockError) else 400
        return _error(status, str(error).removeprefix("--"))  # options of the command line

    @app.exception_handler(OSError)
    async def system(request: Request, error: OSError) -> Response:
        return _error(503, error.strerror or str(error))

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> Response:
        _log.error("%s: %s: %s", request.url.path, type(error).__name__, error)
        return _error(500, f"{type(error).__name__}: {error}")


def _json(value: Any, status: int = 200) -> Response:
    # ASCII: names of files and metadata can hold what UTF-8 cannot write.
    return Response(
        json.dumps(value), status, media_type="application/json",
        headers={"Cache-Control": "no-store"},
    )  # fmt: skip


def _error(status: int, text: str) -> Response:
    return _json({"error": " ".join(text.split())}, status)


def _health(reader: Reader) -> dict[str, Any]:
    reader.refresh()
    index = reader.index
    return {
        "status": "ok", "index": _shown(index.path.absolute().name), "pages": len(index),
        "documents": index.info().documents, "encoder": _shown(index.encoder.name),
    }  # fmt: skip


def _search(reader: Reader, pictures: Pictures, q: str, where: str, k: int) -> dict[str, Any]:
    clock = time.perf_counter()
    found = reader.search(q, SearchConfig(k=k), where=where if where.strip() else None)
    seconds = dict(found.seconds)
    began = time.perf_counter()
    hits = [shown for hit in found.hits if (shown := _hit(reader, pictures, hit))]
    seconds["snippets"] = time.perf_counter() - began
    seconds["total"] = time.perf_counter() - clock
    return {
        "query": q,
        "tokens": list(found.query.tokens),
        "hits": hits,
        "scanned": found.scanned,
        "milliseconds": {name: round(1000 * s, 3) for name, s in seconds.items()},
    }


def _hit(reader: Reader, pictures: Pictures, hit: Hit) -> dict[str, Any] | None:
    """What the page shows of a hit, with the words that fit where the source can be read.

    None when the page was removed meanwhile.
    """
    located = reader.index.locate(hit.page_id)
    if located is None:
        return None
    document, number = located
    heat, grid = heat_of(hit), reader.index.grid
    look = pictures.look(document, number)
    return {
        "page_id": hit.page_id, "doc": _shown(hit.doc), "name": _shown(Path(hit.doc).name),
        "page": hit.page, "pages": document.pages, "score": hit.score, "meta": dict(hit.meta),
        "snippet": snippet(look.words, heat if grid else None, grid) if look.words else "",
        "source": look.source, "aspect": look.aspect, "version": document.sha256[:8],
        "token_scores": None if heat is None else token_scores(heat),
    }  # fmt: skip


def _located(reader: Reader, page: int) -> tuple[DocumentRow, int]:
    found = reader.locate(page)
    if found is None:
        raise HTTPException(404, f"no page {page} in the index: it may have been removed")
    return found


def _heatmap(reader: Reader, pictures: Pictures, page: int, q: str, token: int | None) -> bytes:
    document, number = _located(reader, page)
    heat = reader.heatmap(q, page)
    if token is not None and token >= len(heat):
        raise HTTPException(400, f"token {token}: the query has {len(heat)} tokens")
    look = pictures.look(document, number)
    width = max(1, round(min(_LAYER, _TALLEST * look.aspect)))
    size = width, max(1, round(width / look.aspect))
    layer = heat_layer(look.words, heat, size, grid=reader.index.grid, token=token)
    out = io.BytesIO()
    layer.save(out, "PNG", compress_level=3)
    return out.getvalue()


def _shown(path: str | Path) -> str:
    """Bytes that are no UTF-8 as question marks."""
    return str(path).encode("utf-8", "replace").decode()
