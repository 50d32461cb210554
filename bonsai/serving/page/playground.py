"""The page's routes besides OpenAI's: tokens of a text, the inside of a model, training runs."""

import json
from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from bonsai.serving.api.bodies import read_body, takes
from bonsai.serving.api.faults import ApiError, bad_request
from bonsai.serving.api.schemas import DetokenizeRequest, InspectRequest, TokenizeRequest
from bonsai.serving.background import in_background
from bonsai.serving.page.inside import LONGEST, inspect_prompt
from bonsai.serving.page.runs import find_runs, list_runs, rows_from
from bonsai.serving.registry import Served, usable_tokenizers
from bonsai.system.errors import UserError
from bonsai.tokenizers import Tokenizer
from bonsai.tokenizers.jinja import jinja

LONGEST_TEXT = 200_000  # characters to tokenize for the page
# Bytes of a prompt to tokenize; Tiny Shakespeare fits. While a library makes or frees the list of
# ids, which may be as long, no other Python code runs.
LONGEST_PROMPT = 1_200_000
MOST_INSPECTIONS = 4  # at once
PIECE = 2000  # tokens of a list that are written at a time


def playground_routes(server) -> APIRouter:
    """server: app.Server."""
    router = APIRouter()
    general: dict[str, Tokenizer] = {}
    inspecting = 0

    async def tokenizers() -> dict[str, Tokenizer]:
        if not general:  # the first time only, as vocabularies may have to be read
            general.update(await in_background(usable_tokenizers))
        return {**general, **{name: m.tokenizer for name, m in server.models.items()}}

    async def chosen(
        body: TokenizeRequest | DetokenizeRequest,
    ) -> tuple[str, Tokenizer, Callable, int | None]:
        """The tokenizer that a request names (default: the first model's): its name, the tokenizer,
        a function for the bytes of a token, and its model's context if it has a model."""
        if body.tokenizer is None or body.tokenizer in server.models:
            served: Served = server.find(body.tokenizer or body.model)
            return served.name, served.tokenizer, served.token_bytes, served.context
        known = await tokenizers()
        if body.tokenizer not in known:
            names = ", ".join(known)
            raise bad_request(f"no tokenizer {body.tokenizer[:100]!a}, only {names}", "tokenizer")
        tokenizer = known[body.tokenizer]
        return body.tokenizer, tokenizer, lambda token: tokenizer.decode_bytes([token]), None

    @router.get("/tokenizers")
    async def tokenizer_names() -> list[str]:
        """The models' tokenizers, and the general ones that work here."""
        return list(await tokenizers())

    @router.get("/tokenizer_info")
    async def tokenizer_info(model: str | None = None) -> dict:
        """For clients that have no tokenizer of their own (vLLM's route)."""
        served = server.find(model)
        eot, start = served.tokenizer.eot, served.tokenizer.decode(served.start)
        return {
            "model": served.name,
            "tokenizer_class": type(served.tokenizer).__name__,
            "vocab_size": served.vocab_size,
            "model_max_length": served.context,
            "bos_token": start,  # what an empty prompt becomes
            "eos_token": None if eot is None else served.tokenizer.decode([eot]),
            "pad_token": None,
            "chat_template": None if served.chat is None else jinja(served.chat),
        }

    @router.post("/tokenize", openapi_extra=takes(TokenizeRequest))
    async def tokenize(request: Request) -> Response:
        """The tokens of a text, or only the ids of a `prompt`; "<|endoftext|>" is that token."""
        body = await read_body(request, TokenizeRequest)
        name, tokenizer, token_bytes, context = await chosen(body)
        field = "text" if body.prompt is None else "prompt"
        text = getattr(body, field)
        if text is None or (body.text is not None and body.prompt is not None):
            raise bad_request("give either text or prompt", field)
        if field == "text" and len(text) > LONGEST_TEXT:  # an entry per token is large
            raise bad_request(f"the text is longer than {LONGEST_TEXT:,} characters", field)
        if len(text.encode()) > LONGEST_PROMPT:
            raise bad_request(
                f"the prompt is longer than {LONGEST_PROMPT:,} bytes: send it in parts", field
            )

        def shown(token: int) -> dict:
            data = token_bytes(token)
            return {"id": token, "text": data.decode("utf-8", "replace"), "bytes": list(data)}

        def work() -> bytes:
            ids = tokenizer.encode(text, allow_special=True)
            answer = {"tokenizer": name, "count": len(ids), "max_model_len": context}
            if field == "prompt":
                return with_tokens(answer, ids)
            return with_tokens({**answer, "bytes": len(text.encode())}, ids, shown)

        return await answered(work, field)

    @router.post("/detokenize", openapi_extra=takes(DetokenizeRequest))
    async def detokenize(request: Request) -> Response:
        """The text of tokens, as `text` and `prompt`; bytes that are not UTF-8 become U+FFFD."""
        body = await read_body(request, DetokenizeRequest)
        name, tokenizer, _, _ = await chosen(body)

        def work() -> bytes:
            if (largest := max(body.tokens, default=0)) >= tokenizer.vocab_size:
                raise UserError(
                    f"token {largest} is outside the vocabulary of {tokenizer.vocab_size}"
                )
            text = tokenizer.decode(body.tokens)
            return json.dumps({"tokenizer": name, "text": text, "prompt": text}).encode()

        return await answered(work, "tokens")

    @router.post("/inspect", openapi_extra=takes(InspectRequest))
    async def inspect(request: Request) -> Response:
        """Attention by layer and head, and the likeliest next tokens by layer ("logit lens")."""
        nonlocal inspecting
        body = await read_body(request, InspectRequest)
        served: Served = server.find(body.model)
        if len(body.prompt) > served.context * served.longest + LONGEST_TEXT:
            raise bad_request("the prompt is too long", "prompt")
        if inspecting >= MOST_INSPECTIONS:
            raise ApiError(429, "too many inspections at once", headers={"Retry-After": "1"})
        inspecting += 1
        wrong = "prompt"
        try:
            ids = await in_background(
                lambda: served.tokenizer.encode(body.prompt, allow_special=True)
            )
            wrong = "model"  # an error after this line is about the model
            longest = min(LONGEST, served.context)
            cut, ids = len(ids) > longest, (ids or served.start)[-longest:]
            maps, layers = await server.worker.call(
                lambda: inspect_prompt(served.model, ids, served.vocab_size)
            )
        except UserError as e:
            raise bad_request(str(e), wrong) from None
        finally:
            inspecting -= 1

        def shown(token: int) -> dict:
            return {"id": token, "text": served.token_text(token)}

        def work() -> bytes:
            tops = [[{**shown(token), "p": p} for token, p in layer] for layer in layers]
            tokens = [shown(token) for token in ids]
            answer = {"tokens": tokens, "attention": maps, "layers": tops, "cut": cut}
            return json.dumps(answer, separators=(",", ":")).encode()

        return await answered(work, "prompt")

    @router.get("/runs")
    async def runs() -> Response:
        """Training runs in out*/, the most recently changed one first."""
        return await answered(lambda: json.dumps(list_runs(server.run_folders)).encode())

    @router.get("/runs/{name}")
    async def run_rows(
        name: Annotated[str, Path(max_length=255)],
        start: Annotated[int, Query(alias="from", ge=0, lt=2**31)] = 0,
    ) -> Response:
        """Rows of a run's metrics.jsonl from a line on; `next`: the line to continue from."""

        def work() -> bytes:
            folder = find_runs(server.run_folders).get(name)  # a key of a table, never a path
            try:
                if folder is None:
                    raise FileNotFoundError
                rows, end = rows_from(folder, start)
            except OSError:
                message = f"there is no run {name[:100]!a}, or it cannot be read"
                raise ApiError(404, message, "name", "run_not_found") from None
            return json.dumps({"rows": rows, "next": end}).encode()

        return await answered(work)

    return router


def with_tokens(head: dict, ids: list[int], shown: Callable | None = None) -> bytes:
    """The JSON of an object with a long list `tokens`: the ids, as `shown` shows them. It is made
    in pieces, so that other threads have their turn in between."""
    pieces = []
    for i in range(0, len(ids), PIECE):
        part = ids[i : i + PIECE]
        pieces.append(json.dumps([*map(shown, part)] if shown else part)[1:-1])
    return f'{json.dumps(head)[:-1]}, "tokens": [{", ".join(pieces)}]}}'.encode()


async def answered(work: Callable[[], bytes], param: str | None = None) -> Response:
    """The response with the JSON from `work`, which runs in a thread: long texts take time."""
    try:
        return Response(await in_background(work), media_type="application/json")
    except UserError as e:  # for example a character that the vocabulary does not have
        raise bad_request(str(e), param) from None
