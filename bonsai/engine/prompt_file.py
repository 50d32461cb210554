"""A file of prompts, continued side by side: one JSON object per line in, one per answer out."""

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bonsai.data.messages import messages_of
from bonsai.engine.sampling import RowNumbers, SamplingParams
from bonsai.engine.scheduler import Engine, Request
from bonsai.engine.text import encode_start
from bonsai.engine.textstream import TextStream
from bonsai.files.textfile import read_text
from bonsai.system.errors import UserError
from bonsai.system.progress import Advance, no_progress
from bonsai.system.values import did_you_mean
from bonsai.tokenizers import Tokenizer
from bonsai.tokenizers.chat import ChatTemplate

SETTINGS = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")
SETTINGS += ("seed",)
JOB = 'an object such as {"prompt": "To be"}'
MOST_TEXTS = 1_000_000  # of one prompt: each takes memory from the start


def read_jobs(path: Path, params: SamplingParams, say: Callable[[str], None]) -> list[dict]:
    """The objects of a JSONL file. UserError, with the line's number, for what is not a job.

    A job has a `prompt`, or `messages` (role and content) for a model that chats; and what it likes
    of n and SETTINGS. say: is told of keys that may be misspelt.
    """
    jobs = []
    for number, line in enumerate(read_text(path, "the prompts").split("\n"), 1):
        if not line.strip():
            continue
        try:
            try:
                job = json.loads(line)
            except ValueError as e:
                raise UserError(f"{e}; each line is {JOB}") from None
            if isinstance(job, dict) and isinstance(job.get("messages"), list):
                messages_of(job)
            elif not isinstance(job, dict) or not isinstance(job.get("prompt"), str):
                raise UserError(f"it must be {JOB}")
            json.dumps(job, ensure_ascii=False).encode()  # as it will be written
            job_params(job, params)
        except UnicodeEncodeError as e:
            half = f"{e.object[e.start]!a} is half of a character (a lone surrogate)"
            raise UserError(f"{path}, line {number}: {half}, which no text can hold") from None
        except (ValueError, TypeError, RecursionError, UserError) as e:
            raise UserError(f"{path}, line {number}: {e}") from None
        jobs.append(job)
    if not jobs:
        raise UserError(f"{path} holds no prompts: each line is {JOB}")
    # all other keys go into the answers
    known = {"prompt", "messages", "n", *SETTINGS}
    for key in sorted({key for job in jobs for key in job} - known):
        if hint := did_you_mean(key, SETTINGS):
            say(f"{path}: {key!a} is no setting and changes nothing{hint}")
    return jobs


def job_params(job: dict, params: SamplingParams) -> SamplingParams:
    """The settings for a job: its own where it has them, otherwise `params`."""
    given = {key: job[key] for key in SETTINGS if key in job}
    for key, value in {"n": job.get("n", 1), **given}.items():
        kinds = int if key in ("n", "max_new_tokens", "top_k", "seed") else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise UserError(f"{key}={value!r} is not a number")
    if job.get("n", 1) > MOST_TEXTS:
        raise UserError(f"n={job['n']} must be at most {MOST_TEXTS:,}")
    return replace(params, **given)


def prompt_of(job: dict, tokenizer: Tokenizer, template: ChatTemplate | None) -> list[int]:
    """The prompt of a job as tokens. Raises UserError."""
    if "messages" not in job:
        return encode_start(tokenizer, job["prompt"])
    if template is None:
        raise UserError("the model has no chat template: give a prompt instead of messages")
    messages = ((template.role_for(role), *said) for role, *said in messages_of(job))
    return template.encode(tokenizer, messages)


@dataclass
class Answer:
    """One answer on its way."""

    job: dict
    request: Request
    stream: TextStream | None  # finds the string that ends an answer; None if no string does
    text: str = ""
    complete: bool = False

    def written(self) -> dict:
        """The line for it: the job, and what came of it."""
        stopped = self.stream is not None and self.stream.stopped
        return {
            **self.job,
            "text": self.text,
            "row": self.request.row,
            "tokens": self.stream.released if stopped else len(self.request.tokens),
            "finish": "stop" if stopped else self.request.finish,
        }


def answer_jobs(
    engine: Engine,
    tokenizer: Tokenizer,
    jobs: list[dict],
    params: SamplingParams,
    n: int = 1,
    template: ChatTemplate | None = None,
    progress: Advance = no_progress,
    ends: Sequence[int] = (),
) -> Iterator[dict]:
    """Answer all jobs side by side; yields each answer as soon as those before it are complete.

    n: answers for a job that does not say how many. progress: is called with the number of answers
    that have been completed. ends: further tokens that end the answer to messages. Raises UserError
    before anything is computed, not after an hour.
    """
    if tokenizer.eot is not None:
        params = replace(params, stop_tokens=(tokenizer.eot,))
    prompts = []
    for number, job in enumerate(jobs, 1):
        try:
            prompts.append(prompt_of(job, tokenizer, template))
            engine.check(prompts[-1], job_params(job, params), job.get("n", n))
        except UserError as e:
            raise UserError(f"prompt {number}: {e}") from None
    stop = [template.stop] if template and template.stop else []

    rows = RowNumbers()
    answering = replace(params, stop_tokens=tuple({*params.stop_tokens, *ends}))

    def submitted(job: dict, prompt: list[int]) -> list[Answer]:
        chats = "messages" in job
        own = job_params(job, answering if chats else params)
        count = job.get("n", n)
        first = rows.take((tuple(prompt), own.seed), count)
        requests = engine.submit(prompt, own, count, first)
        looks = stop and chats
        return [Answer(job, r, TextStream(token_bytes, stop) if looks else None) for r in requests]

    def token_bytes(token: int) -> bytes:
        return tokenizer.decode_bytes([token])

    return _answers(engine, tokenizer, zip(jobs, prompts), submitted, progress)


def _answers(engine, tokenizer, todo, submitted, progress) -> Iterator[dict]:
    """The loop behind answer_jobs; all arguments checked."""
    unwritten: deque[Answer] = deque()
    running: dict[int, Answer] = {}  # by id() of the request
    while True:
        while len(engine.waiting) < engine.max_batch and (next_one := next(todo, None)):
            fresh = submitted(*next_one)
            unwritten.extend(fresh)
            running.update((id(answer.request), answer) for answer in fresh)
        if not engine.busy:
            return
        done = 0
        for event in engine.step():
            answer = running.get(id(event.request))
            if answer is None:  # its text has ended before
                continue
            stream, request = answer.stream, answer.request
            if stream and event.token is not None:
                answer.text += stream.push(event.token)
            if stream and stream.stopped:
                engine.cancel(request)
            elif event.finish is not None:
                answer.text += stream.finish() if stream else tokenizer.decode(request.tokens)
            else:
                continue
            del running[id(request)]
            answer.complete = True
            done += 1
        while unwritten and unwritten[0].complete:
            yield unwritten.popleft().written()
        if done:
            progress(done)
