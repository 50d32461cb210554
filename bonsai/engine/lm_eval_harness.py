"""Tasks of lm-evaluation-harness (Gao et al. 2024), answered by a model of ours.

The harness (`pip install lm_eval`) brings questions, prompts and metrics. It asks three things of a
model, which HarnessModel answers. Importing this module imports the harness.
"""

import os
import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from traceback import extract_tb
from typing import NamedTuple

import torch
import yaml
from huggingface_hub import constants
from lm_eval import tasks as harness
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from bonsai.engine.sampling import RowNumbers, SamplingParams
from bonsai.engine.scheduler import Engine
from bonsai.engine.text import start_tokens
from bonsai.evaluation.likelihood import ending_scores
from bonsai.files.yamlfile import read_yaml
from bonsai.runs.schema import brief, is_number, is_whole
from bonsai.system.devices import DTYPES
from bonsai.system.errors import UserError
from bonsai.system.runtime import Runtime
from bonsai.tokenizers import Tokenizer
from bonsai.tokenizers.chat import ChatTemplate
from bonsai.tokenizers.jinja import jinja

OFFLINE = (
    "without the hub there are data in its cache (HF_HOME) and tasks of one's own, --tasks_dir"
)


class Chat(NamedTuple):
    """How a model chats. ends: the tokens with which an answer ends."""

    template: ChatTemplate
    ends: tuple[int, ...]


def run_tasks(
    model: torch.nn.Module,
    tokenizer: Tokenizer,
    runtime: Runtime,
    tasks: Sequence[str],
    folder: str = "",
    batch_size: int = 12,
    limit: int = 0,
    num_fewshot: int | None = None,
    chat: Chat | None = None,
) -> dict:
    """The harness's results for a model: a dict of metrics for each task.

    tasks: names of the harness's tasks, or of those described by YAML files in `folder`. limit:
    questions of each; 0: all. chat: how to ask in messages; None: as plain text. Raises UserError
    for a task that is not known or does not work, and for data that cannot be had.
    """
    manager = find_tasks(tasks, folder)
    for name in tasks:
        if name not in manager.all_tasks:
            where = f" and none in {folder}" if folder else ""
            raise UserError(f"lm_eval has no task {name}{where}: lm_eval ls tasks lists them")
        check_described(manager.task_index[name], folder)
    asked = HarnessModel(model, tokenizer, runtime, batch_size, chat)
    try:
        results = simple_evaluate(
            asked,
            tasks=list(tasks),
            task_manager=manager,
            limit=limit or None,
            num_fewshot=num_fewshot,
            apply_chat_template=chat is not None,
            fewshot_as_multiturn=chat is not None,
            bootstrap_iters=1000,
            log_samples=False,
        )
    except UserError:
        raise
    except Exception as e:
        if any(frame.filename == __file__ for frame in extract_tb(e.__traceback__)[1:]):
            raise  # an error of HarnessModel, not of a task
        names, said = ", ".join(tasks), " ".join(f"{e}".split())[:200]
        if isinstance(e, OSError):  # from the library of data sets, also when it is offline
            offline = f"; {OFFLINE}" if constants.HF_HUB_OFFLINE else ""
            raise UserError(f"the data of {names} cannot be had: {said}{offline}") from None
        where = f" (of {folder})" if folder else ""
        said = f"{type(e).__name__}: {said}"
        raise UserError(f"lm_eval cannot run {names}{where}, as it is described: {said}") from None
    results = results["results"]
    if not any(isinstance(v, float) for metrics in results.values() for v in metrics.values()):
        raise UserError(f"{', '.join(tasks)} has no metric that lm_eval knows: see its metric_list")
    return results


def find_tasks(tasks: Sequence[str], folder: str) -> TaskManager:
    """The harness's table of tasks. Reading all of its thousands takes seconds. So, if the files of
    the tasks are found by name, the table has only what is in their folders; else all tasks.
    Always those of `folder`. Raises UserError as `check_yaml` does."""
    check_yaml(folder)
    places = [*named_in({*tasks}), *([folder] if folder else [])]
    some = TaskManager(include_path=places, include_defaults=False)
    if {*tasks} <= {*some.all_subtasks}:
        return some
    return TaskManager(include_path=folder or None)


def named_in(names: set[str]) -> list[str]:
    """The harness's folders that contain a file with a line `task: NAME` for one of the names; of
    two of which one is in the other only the outer one."""
    line, found = re.compile(rb"^task:\s*[\"']?([^\s\"'#]+)", re.MULTILINE), set()
    for place, _, files in os.walk(Path(harness.__file__).parent):
        for file in files:
            if file.endswith(".yaml"):
                there = line.findall(Path(place, file).read_bytes())
                if names & {name.decode("utf-8", "replace") for name in there}:
                    found.add(place)
    return sorted(p for p in found if not found & {str(q) for q in Path(p).parents})


def check_yaml(folder: str) -> None:
    """Raise UserError for a file in a folder that is not YAML, which the harness would skip, and
    for a task whose name is not text. Functions that a task may name are not executed here."""
    for path in sorted(Path(folder).rglob("*.yaml")) if folder else ():
        tree = read_yaml(path, nodes=True)
        for key, value in tree.value if isinstance(tree, yaml.MappingNode) else ():
            scalar = isinstance(value, yaml.ScalarNode)
            if key.value == "task" and scalar and value.tag != "tag:yaml.org,2002:str":
                raise UserError(f"{path}: task={value.value} is no name: put quotes around it")


def check_described(entry: object, folder: str) -> None:
    """Raise UserError for a task in a folder that lacks a field which every task needs. entry: of
    the harness's index, which differs between releases."""
    path, described = getattr(entry, "yaml_path", None), getattr(entry, "cfg", None)
    if not folder or not path or not described or not path.is_relative_to(folder):
        return
    if "class" in described or "group" in described:
        return
    for field in ("dataset_path", "output_type"):
        value = described.get(field)
        if value is None and not (field == "dataset_path" and "custom_dataset" in described):
            raise UserError(f"{path}: the task {described['task']} has no {field}")
        if value is not None and not isinstance(value, str):
            raise UserError(f"{path}: the task {described['task']} has {field}={value!r}, no word")


class HarnessModel(TemplateLM):
    """A model of ours with the harness's three methods: loglikelihood, loglikelihood_rolling and
    generate_until."""

    def __init__(
        self,
        model,
        tokenizer: Tokenizer,
        runtime: Runtime,
        batch_size: int,
        chat: Chat | None = None,
    ):
        super().__init__()
        self.chat = chat
        self.model, self.coder, self.runtime = model.eval(), tokenizer, runtime
        self.batch_size, self.length = batch_size, model.config.block_size

    @property
    def eot_token_id(self) -> int:
        return start_tokens(self.coder)[0]

    def tok_encode(self, string: str, add_special_tokens=None, **kwargs) -> list[int]:
        # in a chat the template's strings are tokens, and so are those in a question
        return self.coder.encode(string, allow_special=self.chat is not None)

    # ---- questions as messages ----

    def apply_chat_template(self, chat_history: list[dict], add_generation_prompt=True) -> str:
        messages = [(message["role"], message["content"]) for message in chat_history]
        return self.chat.template.text(messages, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str:
        return jinja(self.chat.template)  # for the record

    @property
    def tokenizer_name(self) -> str:
        """Of what the harness keeps for later, which is not asked for here."""
        return ""

    # ---- how likely a text is ----

    def _loglikelihood_tokens(self, requests, disable_tqdm=False, **kwargs):
        """Requests (_, context, continuation) in ids -> for each log p of the continuation in nats,
        and whether the model would write it greedily."""
        rows = []
        for _, context, continuation in requests:
            if len(continuation) > self.length:
                raise UserError(
                    f"a task has an answer of {len(continuation)} tokens, the model's context holds"
                    f" {self.length}"
                )
            context = context or [self.eot_token_id]  # blanks, which some vocabularies drop
            # what does not fit is cut off at the left; the last id is never an input
            rows.append(([*context, *continuation][-(self.length + 1) :], len(continuation)))
        return ending_scores(self.model, rows, self.runtime, self.batch_size)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm=False) -> list[float]:
        """log p in nats of whole texts, in windows that overlap by one token only."""
        windows = []
        for number, request in enumerate(requests):
            ids = self.coder.encode(request.args[0])  # no messages, also in a chat
            parts = get_rolling_token_windows(ids, self.eot_token_id, self.length, context_len=1)
            windows += [(number, *make_disjoint_window(part)) for part in parts]
        scores = self._loglikelihood_tokens(windows)
        totals = [0.0] * len(requests)
        for (number, *_), (score, _) in zip(windows, scores):
            totals[number] += score
        return totals

    # ---- what it writes ----

    def generate_until(self, requests: list[Instance], disable_tqdm=False) -> list[str]:
        """The texts after the prompts, each up to the first of its stop strings; many at a time."""
        dtype = DTYPES[self.runtime.dtype]
        engine = Engine(self.model, self.batch_size, dtype=dtype, capture=self.runtime.captures)
        texts, jobs = [""] * len(requests), {}
        rows = RowNumbers()  # a task's `repeats` come as equal requests
        for number, request in enumerate(requests):
            prompt, options = request.args
            params, stops = self.sampling(options)
            ids = self.tok_encode(prompt) or [self.eot_token_id]
            room = max(1, self.length - params.max_new_tokens)
            prompt = tuple(ids[-room:])
            (job,) = engine.submit(prompt, params, first_row=rows.take(prompt))
            # tokens at the end that a stop string may reach over: each has a byte or more
            jobs[job] = number, stops, max((len(stop.encode()) for stop in stops), default=0)
        while engine.busy:
            for job, group in groupby(engine.step(), key=lambda event: event.request):
                events = list(group)
                last, (number, stops, reach) = events[-1], jobs[job]
                # not the whole text: its length would count twice, as each token looks
                end = self.coder.decode(job.tokens[-reach - len(events) :])
                if not last.finish and not any(stop in end for stop in stops):
                    continue
                texts[number], stopped = before_stop(self.coder.decode(job.tokens), stops)
                if stopped and not last.finish:
                    engine.cancel(job)
        return texts

    def sampling(self, options: dict) -> tuple[SamplingParams, list[str]]:
        """The harness's options for a generation -> our SamplingParams, and the stop strings."""
        until = options.get("until") or []
        stops = [until] if isinstance(until, str) else until
        if not isinstance(stops, list | tuple) or not all(isinstance(s, str) for s in stops):
            raise UserError(f"generation_kwargs of a task: until={brief(until)} is no text or list")
        hot = options.get("do_sample", False) or options.get("temperature", 0) > 0
        ends = () if self.coder.eot is None else (self.coder.eot,)
        if self.chat is not None:
            ends, stops = self.chat.ends, [*stops, *filter(None, [self.chat.template.stop])]
        most = options.get("max_gen_toks", options.get("max_new_tokens", 256))
        for name, value in {"max_gen_toks": most, "top_k": options.get("top_k", 0)}.items():
            if not is_whole(value, 0, 2**31):
                said = f"{name}={brief(value)} is no whole number from 0 on"
                raise UserError(f"generation_kwargs of a task: {said}")
        if not is_number(top_p := options.get("top_p", 1.0)):
            raise UserError(f"generation_kwargs of a task: top_p={brief(top_p)} is no number")
        params = SamplingParams(
            max_new_tokens=min(most, self.length),
            temperature=options.get("temperature", 1.0) if hot else 0.0,
            top_k=options.get("top_k", 0),
            top_p=top_p,
            stop_tokens=ends,
            vocab_limit=self.coder.vocab_size,
        )
        return params, [stop for stop in stops if stop]


def before_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text up to the first of the stop strings in it, and whether there was one.

    >>> before_stop("a b. c", [".", "b"])
    ('a ', True)
    """
    at = min((place for stop in stops if (place := text.find(stop)) >= 0), default=None)
    return (text, False) if at is None else (text[:at], True)
