"""The service's HTTP interface: POST /predict, /health, /metrics, /docs.

Every error is JSON with one key, `error`: what is wrong and the way out. Answers name files as the
client named them, and nothing of the server.
"""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.requests import ClientDisconnect

from vggjax.data.stream.images import nothing_usable
from vggjax.errors import printable
from vggjax.evaluation.predict import Classifier
from vggjax.evaluation.predict_files import to_prediction, to_record
from vggjax.serve.limits import Limits
from vggjax.serve.metrics import CountRequests, Metrics
from vggjax.serve.pipeline import Outcome, Pipeline
from vggjax.serve.upload import CLOSE, busy, form_schema, read_images
from vggjax.training.run_dir.run_result import ModelInfo

PATHS = frozenset(("/predict", "/health", "/metrics", "/docs", "/openapi.json"))

_CLIENT_CLOSED = 499  # as proxies count it; nobody receives it


class ClassShare(BaseModel):
    """A class and its probability."""

    class_: str = Field(alias="class")
    probability: float = Field(ge=0, le=1)


class ImageResult(BaseModel):
    """The prediction for one image, with the keys of `vggjax predict --json`, or its `error`."""

    path: str = Field(description="The file's name in the request")
    class_: str = Field("", alias="class", description="With one label per image")
    probability: float = Field(0, ge=0, le=1)
    labels: list[str] = Field([], description="With several labels per image")
    top: list[ClassShare] = Field([], description="The most probable classes, best first")
    probabilities: dict[str, float] = Field({}, description="Of all classes, if asked for")
    error: str = Field("", description="Why the image cannot be used")


class Predictions(BaseModel):
    """A prediction for each image, in the order of the request."""

    predictions: list[ImageResult]


class Problem(BaseModel):
    """What is wrong, and the way out."""

    error: str


class Health(BaseModel):
    """The service answers."""

    status: str = "ok"


_RETRY = {"Retry-After": {"description": "Seconds", "schema": {"type": "integer"}}}
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "No form of files"},
    413: {"model": Problem, "description": "Too large"},
    415: {"model": Problem, "description": "Not multipart/form-data"},
    408: {"model": Problem, "description": "The request came too slowly"},
    422: {
        "model": Problem,
        "description": "A wrong parameter, too many images, or none that is usable",
    },
    503: {"model": Problem, "description": "Too much is waiting", "headers": _RETRY},
}
_NO_TOKEN: dict[int | str, dict[str, Any]] = {
    401: {"model": Problem, "description": "The token is missing or wrong"}
}


def make_app(classifier: Classifier, limits: Limits, *, token: str | None = None) -> FastAPI:
    """Return the service of a classifier, as an ASGI application.

    With a `token`, requests to /predict and /metrics must carry it in the header `Authorization:
    Bearer TOKEN`. The model is compiled before this returns.

    Raises:
        DataError: the model's outputs are not finite.
    """
    metrics = Metrics()
    pipeline = Pipeline(classifier, limits, on_batch=metrics.count_batch)
    pipeline.warm_up()
    metrics.held_images.set_function(lambda: pipeline.held_images)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        pipeline.start()
        yield
        await asyncio.to_thread(pipeline.close)

    app = FastAPI(
        title="vggjax",
        description="Classifies images.",
        version=version("vggjax"),
        lifespan=lifespan,
        redoc_url=None,
        docs_url="/docs",
        swagger_ui_oauth2_redirect_url=None,
    )
    app.add_middleware(CountRequests, metrics=metrics, paths=PATHS)
    for kind, answer in _ANSWERS.items():
        app.add_exception_handler(kind, answer)
    guards = [] if token is None else [Depends(_token_check(token))]
    refusals = {} if token is None else _NO_TOKEN

    @app.post(
        "/predict",
        dependencies=guards,
        responses={200: {"model": Predictions}, **_PROBLEMS, **refusals},
        openapi_extra={"requestBody": form_schema(limits)},
    )
    async def predict(
        request: Request,
        top: Annotated[int, Query(ge=1, le=1000, description="Classes to name")] = 5,
        probabilities: Annotated[bool, Query(description="Add those of all classes")] = False,
    ) -> Response:
        """Classify the images of a form. Of several, those that cannot be used have an `error`."""
        names, outcomes = await _classify(request, pipeline, limits)
        num_unusable = sum(isinstance(outcome, str) for outcome in outcomes)
        metrics.images.labels("unusable").inc(num_unusable)
        metrics.images.labels("classified").inc(len(outcomes) - num_unusable)
        records = _records(names, outcomes, classifier.info, top=top, probabilities=probabilities)
        return _json({"predictions": records})

    _add_status(app, metrics, guards, refusals)
    return app


def _add_status(
    app: FastAPI, metrics: Metrics, guards: list[Any], refusals: dict[int | str, dict[str, Any]]
) -> None:
    """Add the routes /health and /metrics."""

    @app.get("/health")
    async def health() -> Health:
        """Return whether the service answers; it needs no token."""
        return Health()

    @app.get(
        "/metrics",
        dependencies=guards,
        responses={200: {"content": {"text/plain": {}}}, **refusals},
        response_class=Response,
    )
    async def prometheus() -> Response:
        """Return counters and timings for Prometheus."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


async def _classify(
    request: Request, pipeline: Pipeline, limits: Limits
) -> tuple[list[str], list[Outcome]]:
    """Return the names and outcomes of a request's images; raise `HTTPException` if refused."""
    is_read = False
    try:
        async with asyncio.timeout(limits.timeout_s):
            images = await read_images(request, pipeline, limits)
            is_read = True
            futures = pipeline.submit([data for _, data in images])
            if futures is None:
                raise busy(pipeline)
            outcomes = await asyncio.gather(*map(asyncio.wrap_future, futures))
    except TimeoutError:
        if is_read:
            raise busy(pipeline, f"No answer within {limits.timeout_s:g} s.") from None
        text = f"The request was not complete within {limits.timeout_s:g} s. Send fewer images."
        raise HTTPException(408, text, CLOSE) from None
    except ClientDisconnect:
        raise HTTPException(_CLIENT_CLOSED, "The client closed the connection.") from None
    return [name for name, _ in images], outcomes


def _records(
    names: list[str], outcomes: list[Outcome], info: ModelInfo, *, top: int, probabilities: bool
) -> list[dict[str, Any]]:
    """Return what is said of each image; raise `HTTPException` if none can be used."""
    reasons = {Path(n): why for n, why in zip(names, outcomes, strict=True) if isinstance(why, str)}
    if all(isinstance(outcome, str) for outcome in outcomes):
        raise HTTPException(422, str(nothing_usable(len(reasons), *next(iter(reasons.items())))))
    records = []
    for name, outcome in zip(names, outcomes, strict=True):
        prediction = to_prediction(Path(name), outcome, info, top=top)
        record = to_record(prediction, info, probabilities=probabilities)
        records.append(record | {"path": name})
    return records


def _token_check(token: str) -> Callable[..., Awaitable[None]]:
    scheme = HTTPBearer(auto_error=False)

    async def check_token(
        given: Annotated[HTTPAuthorizationCredentials | None, Depends(scheme)],
    ) -> None:
        received = "" if given is None else given.credentials
        if not secrets.compare_digest(received.encode(errors="replace"), token.encode()):
            raise HTTPException(
                401,
                f"The token is {'wrong' if received else 'missing'}. Send the header "
                "Authorization: Bearer TOKEN.",
                {"WWW-Authenticate": "Bearer"},
            )

    return check_token


def _json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    # ASCII: a class whose folder's name is no UTF-8 cannot be encoded otherwise.
    return Response(json.dumps(content), status, headers, "application/json")


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, AnyHTTPException)
    text, paths = error.detail, "POST /predict, GET /health, GET /metrics and GET /docs"
    if text == "Not Found":
        text = f"There is no such page. There are {paths}."
    elif text == "Method Not Allowed":
        text = f"This page has another method. There are {paths}."
    return _json({"error": text}, error.status_code, error.headers)


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name, reason = first["loc"][-1], first["msg"]
    text = f"Wrong parameter {printable(name)}: {reason}; got {printable(first.get('input'))}."
    return _json({"error": text}, 422)


async def _failed(_: Request, error: Exception) -> Response:
    text = "The service failed; its log says why. Another request may be answered."
    return _json({"error": text}, 500)


_ANSWERS: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
    AnyHTTPException: _refused,
    RequestValidationError: _invalid,
    Exception: _failed,
}
