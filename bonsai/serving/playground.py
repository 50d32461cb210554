"""Routes for the page, beside OpenAI's: tokens of a text, the inside of a model, training runs."""

import json
from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Path, Query, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from bonsai.errors import UserError
from bonsai.serving.errors import ApiError, bad_request
from bonsai.serving.inside import LONGEST, inspect_prompt
from bonsai.serving.registry import Served, usable_tokenizers
from bonsai.serving.runs import MOST_ROWS, find_runs, list_runs, read_rows
from bonsai.serving.schemas import DetokenizeRequest, InspectRequest, TokenizeRequest
from bonsai.tokenizers import Tokenizer

LONGEST_TEXT = 200_000  # characters to tokenize for the page
MOST_INSPECTIONS = 4  # at once


def playground_routes(server) -> APIRouter:
    """server: app.Server."""
    router = APIRouter()
    general: dict[str, Tokenizer] = {}
    inspecting = 0

    async def tokenizers() -> dict[str, Tokenizer]:
        if not general:  # the first time a vocabulary may have to be read
            general.update(await run_in_threadpool(usable_tokenizers))
        return {**general, **{name: m.tokenizer for name, m in server.models.items()}}

    async def chosen(body: TokenizeRequest | DetokenizeRequest) -> tuple[str, Tokenizer, Callable]:
        """The tokenizer that a request names (default: the first model's): its name, and the bytes
        of a token."""
        if body.tokenizer is None or body.tokenizer in server.models:
            served: Served = server.find(body.tokenizer or body.model)
            return served.name, served.tokenizer, served.token_bytes
        known = await tokenizers()
        if body.tokenizer not in known:
            names = ", ".join(known)
            raise bad_request(f"no tokenizer {body.tokenizer[:100]!a}, only {names}", "tokenizer")
        tokenizer = known[body.tokenizer]
        return body.tokenizer, tokenizer, lambda token: tokenizer.decode_bytes([token])

    @router.get("/tokenizers")
    async def tokenizer_names() -> list[str]:
        """Each model's own, and the general ones that work here."""
        return list(await tokenizers())

    @router.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> Response:
        """The tokens of a text; "<|endoftext|>" in it is that token."""
        name, tokenizer, token_bytes = await chosen(body)
        if len(body.text) > LONGEST_TEXT:
            raise bad_request(f"the text is longer than {LONGEST_TEXT:,} characters", "text")

        def work() -> bytes:
            tokens = []
            for token in tokenizer.encode(body.text, allow_special=True):
                data = token_bytes(token)
                text = data.decode("utf-8", "replace")
                tokens.append({"id": token, "text": text, "bytes": list(data)})
            size = len(body.text.encode())
            answer = {"tokenizer": name, "tokens": tokens, "count": len(tokens), "bytes": size}
            return json.dumps(answer).encode()

        return await answered(work, "text")

    @router.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> Response:
        """The text of some tokens; bytes that are not UTF-8 become U+FFFD."""
        name, tokenizer, _ = await chosen(body)
        if outside := [token for token in body.tokens if token >= tokenizer.vocab_size]:
            raise bad_request(
                f"token {outside[0]} is outside the vocabulary of {tokenizer.vocab_size}", "tokens"
            )

        def work() -> bytes:
            return json.dumps({"tokenizer": name, "text": tokenizer.decode(body.tokens)}).encode()

        return await answered(work, "tokens")

    @router.post("/inspect")
    async def inspect(body: InspectRequest) -> Response:
        """Attention by layer and head, and the likeliest next tokens by layer ("logit lens")."""
        nonlocal inspecting
        served: Served = server.find(body.model)
        if len(body.prompt) > served.context * served.longest + LONGEST_TEXT:
            raise bad_request("the prompt is too long", "prompt")
        if inspecting >= MOST_INSPECTIONS:
            raise ApiError(429, "too many inspections at once", headers={"Retry-After": "1"})
        inspecting += 1
        try:
            encode = served.tokenizer.encode
            ids = await run_in_threadpool(encode, body.prompt, allow_special=True)
            longest = min(LONGEST, served.context)
            cut, ids = len(ids) > longest, (ids or served.start)[-longest:]
            maps, layers = await server.worker.call(
                lambda: inspect_prompt(served.model, ids, served.vocab_size)
            )
        except UserError as e:
            raise bad_request(str(e), "prompt") from None
        finally:
            inspecting -= 1

        def shown(token: int) -> dict:
            return {"id": token, "text": served.token_bytes(token).decode("utf-8", "replace")}

        def work() -> bytes:
            tops = [[{**shown(token), "p": p} for token, p in layer] for layer in layers]
            tokens = [shown(token) for token in ids]
            answer = {"tokens": tokens, "attention": maps, "layers": tops, "cut": cut}
            return json.dumps(answer, separators=(",", ":")).encode()

        return await answered(work, "prompt")

    @router.get("/runs")
    async def runs() -> Response:
        """Training runs in out*/, the one last written to first."""
        return JSONResponse(await run_in_threadpool(list_runs, server.run_folders))

    @router.get("/runs/{name}")
    async def run_rows(
        name: Annotated[str, Path(max_length=255)],
        start: Annotated[int, Query(alias="from", ge=0, lt=2**31)] = 0,
    ) -> Response:
        """Rows of a run's metrics.jsonl from a line on; `next` is where to go on."""
        folder = find_runs(server.run_folders).get(name)  # a name from this list, never a path
        if folder is None:
            raise ApiError(404, f"there is no run {name[:100]!a}", "name", "run_not_found")
        rows, end = await run_in_threadpool(read_rows, folder, start, MOST_ROWS)
        return JSONResponse({"rows": rows, "next": end})

    return router


async def answered(work: Callable[[], bytes], param: str) -> Response:
    """The JSON that `work` makes, in a thread: a long text takes a while."""
    try:
        return Response(await run_in_threadpool(work), media_type="application/json")
    except UserError as e:  # a character that the tokenizer does not know
        raise bad_request(str(e), param) from None
