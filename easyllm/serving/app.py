"""The HTTP application around one service."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from easyllm import __version__
from easyllm.data.chat.values import shown
from easyllm.serving.errors import Refused, error_body
from easyllm.serving.http.auth import Keys
from easyllm.serving.http.middleware import Middleware
from easyllm.serving.routes import generate, openai, tokenize
from easyllm.serving.routes.requests import NOT_OFFERED
from easyllm.serving.service import Service
from easyllm.serving.streaming import CLIENT_LEFT, ClientLeft

PAGE = Path(__file__).parent / "page"
FILES = {"/": "index.html", "/app.js": "app.js", "/app.css": "app.css", "/icon.svg": "icon.svg"}
"""The chat page."""
ROUTES = (
    *FILES, "/health", "/ready", "/metrics", "/generate", "/tokenize", "/openapi.json",
    "/v1/models", "/v1/completions", "/v1/chat/completions",
)  # fmt: skip


class Application:
    """The ASGI application; ``guard`` counts the requests under way."""

    def __init__(self, service: Service, keys: Keys):
        self.middleware = Middleware(_routes(service), service, keys, frozenset(FILES), _route)
        self.asgi = self.middleware
        if origins := list(service.run.serving.cors_origins):
            # outermost: a browser asks without the key whether it may send it
            self.asgi = CORSMiddleware(  # type: ignore[assignment]
                self.middleware,
                allow_origins=origins,
                allow_methods=["GET", "POST"],
                allow_headers=["Authorization", "Content-Type"],
                expose_headers=["X-Request-Id"],
            )


def _route(path: str) -> str:
    """The name of a path in metrics and the log; a client cannot add new names."""
    if path.startswith("/v1/models/"):
        return "/v1/models"
    return path if path in ROUTES else "other"


def _routes(service: Service) -> FastAPI:
    # FastAPI's own documentation pages load scripts from other hosts
    app = FastAPI(
        title="easyllm", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False
    )

    @app.exception_handler(Refused)
    async def refused(_request: Request, error: Refused) -> JSONResponse:
        return JSONResponse(error.body, error.status, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        message, param, code = _described(error)
        return JSONResponse(error_body(400, message, param, code), 400)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        status, message, code = error.status_code, str(error.detail), None
        path, headers = request.scope["path"], dict(error.headers or {})
        if status == 404:
            message, code = f"there is no {path}; /openapi.json has all routes", "unknown_url"
        elif status == 405:
            headers["Allow"] = headers["Allow"].replace("GET", "GET, HEAD")
            message = f"{path} takes {headers['Allow']}"
        return JSONResponse(error_body(status, message, None, code), status, headers)

    @app.exception_handler(Exception)
    async def broken(_request: Request, _error: Exception) -> JSONResponse:
        return JSONResponse(error_body(500, "internal error"), 500)

    @app.exception_handler(ClientLeft)
    async def left(_request: Request, _error: ClientLeft) -> Response:
        return Response(status_code=CLIENT_LEFT)

    # first, because routes are tried in order
    app.include_router(openai.routes(service))
    app.include_router(generate.routes(service))
    app.include_router(tokenize.routes(service))

    @app.get("/health")
    async def health() -> JSONResponse:
        """Whether the process runs; false once its engine has failed."""
        failed = service.engine is not None and service.engine.failed
        status = "engine failed" if failed else "ok"
        return JSONResponse({"status": status, "model": service.model}, 503 if failed else 200)

    @app.get("/ready")
    async def ready() -> JSONResponse:
        """Whether requests are answered now."""
        reason = service.unready()
        return JSONResponse({"ready": not reason, "reason": reason}, 503 if reason else 200)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    for path, name in FILES.items():
        app.add_api_route(path, _file(name), include_in_schema=False)
    return app


def _file(name: str):  # type: ignore[no-untyped-def]
    async def file() -> FileResponse:
        return FileResponse(PAGE / name, headers={"Cache-Control": "no-cache"})

    return file


def _described(error: RequestValidationError) -> tuple[str, str | None, str | None]:
    """A line for each mistake in a request, the field of the first and a code for it."""
    lines, params, code = [], [], None
    for mistake in error.errors():
        place = _field(error.body, mistake["loc"][1:])
        message = mistake["msg"]
        if mistake["type"] == "extra_forbidden":
            code = "unsupported_parameter"
            message = _not_offered(place, mistake["input"])
        elif mistake["type"] == "json_invalid":
            place = ""
            message = (
                f"the body is not JSON: {mistake['ctx']['error']} at character {mistake['loc'][1]}"
            )
        elif not place:
            message = "the body is not a JSON object"
        line = f"{place}: {message}" if place else message
        if line not in lines:
            lines.append(line)
            params.append(place or None)
    return "\n".join(lines[:20]), params[0], code


def _field(body: Any, place: Sequence[int | str]) -> str:
    """The field that a mistake is in, as clients write it: without the names of the types that
    pydantic has tried there."""
    found: list[str] = []
    for at, part in enumerate(place):
        known = (
            part in body
            if isinstance(body, dict)
            else (isinstance(body, list) and isinstance(part, int) and part < len(body))
        )
        if known:
            body = body[part]
        if known or (at == len(place) - 1 and isinstance(body, dict)):  # or it is missing
            found.append(str(part))
    return ".".join(found)


def _not_offered(name: str, value: Any) -> str:
    neutral = NOT_OFFERED.get(name)
    if neutral is None:
        return "this server has no such parameter"
    instead = f", or give {shown(neutral[0])}" if neutral else ""
    return f"{shown(value)} is not offered by this server; leave it out{instead}"
