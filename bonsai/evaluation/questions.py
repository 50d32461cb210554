"""Questions that a run answers at each of its evaluations: multiple choice, and CORE."""

from collections.abc import Callable
from dataclasses import dataclass

from bonsai.data.dataset import tokenizer_in_training
from bonsai.evaluation.choices import Question, encode_endings, multiple_choice, read_questions
from bonsai.evaluation.core import Task, answered, core, read_bundle
from bonsai.files.access import exists
from bonsai.system.errors import UserError
from bonsai.system.paths import resolve_path
from bonsai.system.progress import Track
from bonsai.system.runtime import Runtime
from bonsai.tokenizers import Tokenizer

OF_CHOICES = ("accuracy", "accuracy_per_token", "accuracy_per_byte")  # see multiple_choice


@dataclass
class Questions:
    """What is asked, and in which tokens. choices: of one file; tasks: of CORE's bundle."""

    choices: list[Question]
    tasks: list[Task]
    tokenizer: Tokenizer | None  # None: nothing is asked

    def scores(
        self,
        model,
        runtime: Runtime,
        batch_size: int,
        tracker: Callable[[str], Track] = lambda label: iter,
    ) -> dict[str, float]:
        """The shares of right answers, by OF_CHOICES, and `core`, as far as they were asked for.

        tracker: called with a label; returns what wraps the iteration over batches, of which each
        process has equally many. Raises UserError for texts that the tokenizer does not know.
        """
        found, coder = {}, self.tokenizer
        if self.choices:
            track = tracker("the questions")
            shares = multiple_choice(model, coder, self.choices, runtime, batch_size, track)
            found = {name: shares[name] for name in OF_CHOICES}
        if self.tasks:
            *_, mean = core(model, coder, self.tasks, runtime, batch_size, tracker)
            found["core"] = mean["centered"]
        return found


def read_all(choices: str, bundle: str, most: int, tokenizer: dict | None, config) -> Questions:
    """Read a file of questions, and CORE's bundle; '': none. most: how many of the file, spread
    evenly over it, and of each task of the bundle; 0: all. tokenizer: as for
    `tokenizer_in_training`. config: the model's. Raises UserError as `read_questions` and
    `read_bundle` do, for a model that reads no text, and for texts that it cannot read: now, as the
    first evaluation of a run that goes on can be hours away."""
    for name, path in (("choices", choices), ("core", bundle)):
        if path and not exists(resolve_path(path)):  # maybe of a run that began in another folder
            raise UserError(f"--{name}={path} does not exist: --{name}= leaves it out")
    asked = read_questions(resolve_path(choices)) if choices else []
    if 0 < most < len(asked):
        asked = [asked[i * len(asked) // most] for i in range(most)]
    tasks = read_bundle(resolve_path(bundle), most) if bundle else []
    coder = tokenizer_in_training(tokenizer, config.vocab_size) if asked or tasks else None
    if (asked or tasks) and coder is None:
        raise UserError("the data are numbers that are no text: leave out --choices and --core")
    for question in asked:
        encode_endings(question, coder, config.block_size)
    for task in tasks:
        try:
            for item in task.items:
                for text in answered(task, item):
                    coder.encode(text)
        except UserError as e:
            raise UserError(f"the task {task.name}: {e}") from None
    return Questions(asked, tasks, coder)
