"""A stand-in for bonsai.engine's Engine until it is there: no cache, one request after another."""

from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

from bonsai.engine import SamplingParams as Old
from bonsai.engine import row_generator, sample_next
from bonsai.errors import UserError


@dataclass(frozen=True)
class SamplingParams(Old):
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict = field(default_factory=dict)
    logprobs: int | None = None
    prompt_logprobs: bool = False


@dataclass(eq=False)
class Request:
    prompt: list
    params: SamplingParams
    row: int
    tokens: list = field(default_factory=list)
    finish: str | None = None
    generator: object = None


@dataclass
class Event:
    request: Request
    token: int | None
    logprob: float | None = None
    top: list | None = None
    prompt_logprobs: list | None = None
    finish: str | None = None


class Engine:
    def __init__(self, model, max_batch=16, length=0, dtype=None, quantize="", compile=False):
        self.model, self.max_batch, self.requests = model, max_batch, []

    @property
    def busy(self):
        return bool(self.requests)

    def submit(self, prompt, params, n=1):
        if not prompt:
            raise UserError("the prompt is empty")
        made = [Request(list(prompt), params, row) for row in range(n)]
        for r in made:
            r.generator = row_generator(params.seed, r.row, next(self.model.parameters()).device)
        self.requests += made
        return made

    def cancel(self, request):
        if request in self.requests:
            self.requests.remove(request)

    @torch.no_grad()
    def step(self):
        events = []
        for r in self.requests[: self.max_batch]:
            ids = [*r.prompt, *r.tokens]
            first = not r.tokens
            x = torch.tensor([ids])
            want = first and r.params.prompt_logprobs
            logits = self.model(x, targets=x if want else None)[0][0]  # (T or 1, V)
            V = r.params.vocab_limit
            prompt_logprobs = None
            if want:
                lp = F.log_softmax(logits[:, :V], -1)
                k = r.params.logprobs or 0
                prompt_logprobs = [None]
                for t in range(1, len(ids)):
                    top = lp[t - 1].topk(k)
                    pairs = list(zip(top.indices.tolist(), top.values.tolist()))
                    prompt_logprobs.append((lp[t - 1, ids[t]].item(), pairs))
            if r.params.max_new_tokens == 0:
                events.append(Event(r, None, None, None, prompt_logprobs, "length"))
                self.requests.remove(r)
                continue
            last = logits[-1:].clone()
            lp = F.log_softmax(last[:, :V], -1)[0]
            for i, b in r.params.logit_bias.items():
                last[0, i] += b
            token = sample_next(last, r.params, [r.generator]).item()
            event = Event(r, token, prompt_logprobs=prompt_logprobs)
            if r.params.logprobs is not None:
                top = lp.topk(r.params.logprobs)
                event.logprob = lp[token].item()
                event.top = list(zip(top.indices.tolist(), top.values.tolist()))
            r.tokens.append(token)
            if token in r.params.stop_tokens:
                event.token, event.finish = None, "stop"
            elif len(r.tokens) == r.params.max_new_tokens or (
                len(ids) >= self.model.config.block_size
            ):
                event.finish = "length"
            if event.finish:
                r.finish = event.finish
                self.requests.remove(r)
            events.append(event)
        return events
