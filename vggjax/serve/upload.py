"""Read the images of a request: a multipart form, counted while it comes."""

import logging
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from vggjax.errors import printable
from vggjax.serve.limits import Limits
from vggjax.serve.pipeline import Pipeline

FIELD = "images"

EXAMPLE = f"curl -F {FIELD}=@photo.jpg -F {FIELD}=@other.jpg"

CLOSE = {"Connection": "close"}
"""Headers of an answer that is given before the request's end."""

_MAX_NAME_LENGTH = 255

logging.getLogger("python_multipart").addHandler(logging.NullHandler())  # the answer says it
logging.getLogger("python_multipart").propagate = False


async def read_images(
    request: Request, pipeline: Pipeline, limits: Limits
) -> list[tuple[str, bytes]]:
    """Return the name and content of each file of a form, in order; at least one.

    Raises:
        HTTPException: a form that cannot be used, or too large; or too much is held already.
    """
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "multipart/form-data":
        raise HTTPException(
            415,
            f"Images come as multipart/form-data, as {EXAMPLE} sends them; got "
            f"{printable(kind) or 'no content type'}.",
        )
    too_large = HTTPException(
        413, f"The request is larger than {limits.max_body_mb} MiB. Send fewer images at once."
    )
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limits.max_body_bytes:
        raise too_large
    if pipeline.held_images >= limits.max_queue:
        raise busy(pipeline)
    taken = 0

    async def chunks() -> AsyncGenerator[bytes, None]:
        nonlocal taken
        async for chunk in request.stream():
            if taken + len(chunk) > limits.max_body_bytes:
                too_large.headers = CLOSE  # a body without a length may have no end
                raise too_large
            if not pipeline.take(len(chunk)):
                raise busy(pipeline)
            taken += len(chunk)
            yield chunk

    try:
        return await _parse(request, chunks(), limits)
    finally:
        pipeline.give_back(taken)


def form_schema(limits: Limits) -> dict[str, Any]:
    """Return the form as OpenAPI describes it."""
    files = {"type": "array", "minItems": 1, "maxItems": limits.max_files}
    form = {
        "type": "object",
        "required": [FIELD],
        "properties": {FIELD: files | {"items": {"type": "string", "format": "binary"}}},
        "additionalProperties": False,
    }
    return {"required": True, "content": {"multipart/form-data": {"schema": form}}}


async def _parse(
    request: Request, chunks: AsyncGenerator[bytes, None], limits: Limits
) -> list[tuple[str, bytes]]:
    parser = MultiPartParser(
        request.headers, chunks, max_files=limits.max_files, max_fields=limits.max_files
    )
    parser.spool_max_size = limits.max_body_bytes  # in memory, where the decoder needs it
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise HTTPException(
                422, f"The form has more than {limits.max_files} images. Send them in several."
            ) from None
        text = error.message.rstrip(".")
        raise HTTPException(400, f"{text}. Send a form as {EXAMPLE} does.") from None
    images: list[tuple[str, bytes]] = []
    try:
        for field, value in form.multi_items():
            if not isinstance(value, UploadFile) or field != FIELD:
                raise HTTPException(
                    400,
                    f"The form has a field {printable(field)[:_MAX_NAME_LENGTH]!r}. It takes "
                    f"files alone, each called {FIELD}; parameters are in the address: "
                    "/predict?top=3.",
                )
            name = printable(value.filename or f"image {len(images) + 1}")[:_MAX_NAME_LENGTH]
            images.append((name, await value.read()))
    finally:
        await form.close()
    if not images:
        raise HTTPException(400, f"The form has no images. Send them as {EXAMPLE} does.")
    return images


def busy(pipeline: Pipeline, reason: str = "Too many images are waiting.") -> HTTPException:
    """Return the answer 503, with the seconds after which to try again."""
    seconds = pipeline.retry_after_s
    text = f"{reason} Try again in {seconds} s."
    return HTTPException(503, text, {"Retry-After": str(seconds)})
