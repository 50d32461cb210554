"""bonsai/evaluation/core.py: each kind of task by brute force; solved questions; the mean."""

import json
import random

import pytest
import torch
from helpers.errors import one_line
from helpers.evaluated import phrase, runtime
from helpers.tiny_model import tiny
from torch.nn import functional as F

from bonsai.evaluation.core import Task, core, prompts, read_bundle, scored, task_accuracy
from bonsai.system.errors import UserError
from bonsai.tokenizers import ByteTokenizer, CharTokenizer

YAML = """icl_tasks:
- {{label: trees, dataset_uri: trees.jsonl, num_fewshot: [{shots}], icl_task_type: multiple_choice}}
- {{label: who, dataset_uri: who.jsonl, num_fewshot: [0], icl_task_type: schema}}
- label: goes_on
  dataset_uri: deep/on.jsonl
  num_fewshot: [1]
  icl_task_type: language_modeling
  continuation_delimiter: ""
"""


@pytest.fixture
def bundle(tmp_path):
    """Three tasks, one of each kind."""
    rng = random.Random(0)
    folder = tmp_path / "bundle"
    (folder / "eval_data" / "deep").mkdir(parents=True)
    items = {
        "trees.jsonl": [
            {"query": phrase(rng, 2), "choices": [phrase(rng, 2) for _ in range(3)], "gold": k % 3}
            for k in range(24)
        ],
        "who.jsonl": [
            {
                "context_options": [phrase(rng, 2), phrase(rng, 3)],
                "continuation": phrase(rng, 2),
                "gold": k % 2,
            }
            for k in range(20)
        ],
        "deep/on.jsonl": [
            {"context": phrase(rng, 2) + " ", "continuation": rng.choice(" abt")} for k in range(30)
        ],
    }
    for name, lines in items.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "eval_data" / name).write_text(text)
    (folder / "core.yaml").write_text(YAML.format(shots=1))
    rows = ["Eval Task,Other,Random baseline", "trees,x,33.3", "who,x,50.0", "goes_on,x,0.0"]
    (folder / "eval_meta_data.csv").write_text("\n".join(rows) + "\n")
    return folder


@torch.no_grad()
def logp(model, ids: list[int], begin: int) -> list[tuple[float, bool]]:
    """log p of each of ids[begin:], one by one, and whether it is the likeliest."""
    out = []
    for end in range(begin, len(ids)):
        values = F.log_softmax(model(torch.tensor([ids[:end]]))[0][0, -1].double(), dim=-1)
        out.append((values[ids[end]].item(), int(values.argmax()) == ids[end]))
    return out


def test_accuracies_are_those_of_brute_force(bundle):
    model, coder = tiny(3, block_size=200, vocab_size=257).eval(), ByteTokenizer()
    tasks = read_bundle(bundle)
    assert [t.baseline for t in tasks] == pytest.approx([0.333, 0.5, 0.0])
    accuracies = []
    for task in tasks:
        right = 0
        for number, item in enumerate(task.items):
            texts = [[coder.eot, *coder.encode(text)] for text in prompts(task, number)]
            if task.kind == "language_modeling":
                right += all(best for _, best in logp(model, texts[1], len(texts[0])))
                continue
            end = len(item["continuation"].encode()) + 1 if task.kind == "schema" else 0
            means = []
            for row, (_, n) in zip(texts, scored(task, texts)):
                assert n >= end
                values = [value for value, _ in logp(model, row, len(row) - n)]
                means.append(sum(values) / len(values))
            right += means.index(max(means)) == item["gold"]
        accuracies.append(right / len(task.items))
        assert task_accuracy(model, coder, task, runtime(), 7) == pytest.approx(accuracies[-1])
    *rows, last = core(model, coder, tasks, runtime(), 7)
    assert [row["accuracy"] for row in rows] == pytest.approx(accuracies)
    centered = [(a - t.baseline) / (1 - t.baseline) for a, t in zip(accuracies, tasks)]
    assert last["task"] == "CORE" and last["centered"] == pytest.approx(sum(centered) / 3)
    assert any(0 < a < 1 for a in accuracies)


def test_what_counts_of_a_question(bundle):
    """After what all answers begin with; what all contexts end with; after the text."""
    choice, schema, on = read_bundle(bundle)
    assert scored(choice, [[1, 2, 3, 4], [1, 2, 5]]) == [([1, 2, 3, 4], 2), ([1, 2, 5], 1)]
    assert scored(choice, [[1, 2], [1, 2, 5]]) == [([1, 2], 1), ([1, 2, 5], 1)]
    assert scored(schema, [[9, 8, 3, 4], [7, 3, 4]]) == [([9, 8, 3, 4], 2), ([7, 3, 4], 2)]
    assert scored(on, [[1, 2], [1, 2, 3, 4]]) == [([1, 2, 3, 4], 2)]


def test_solved_questions_stand_in_front(bundle):
    task = read_bundle(bundle)[0]
    item, texts = task.items[5], prompts(task, 5)
    solved, _, rest = texts[0].partition("\n\n")
    other = next(i for i in task.items if solved == f"{i['query']} {i['choices'][i['gold']]}")
    assert other is not item and rest == f"{item['query']} {item['choices'][0]}"
    assert prompts(task, 5) == texts != prompts(task, 6)  # the same ones each time
    task.shots = 0
    assert prompts(task, 5)[1] == f"{item['query']} {item['choices'][1]}"


def test_a_limit_takes_the_same_questions(bundle):
    whole, some = read_bundle(bundle), read_bundle(bundle, 4)
    assert [len(t.items) for t in some] == [4, 4, 4]
    assert all(a.items[:4] == b.items for a, b in zip(whole, some))


YAML_OF = "core.yaml"
BROKEN = {  # file, what stands in it, what instead (None: all of it), what is said
    "no yaml": (YAML_OF, None, "icl_tasks: [", "core.yaml is not YAML in line 1"),
    "no tasks": (YAML_OF, None, "a: 1", "core.yaml has no icl_tasks"),
    "a list": (YAML_OF, None, "- 1", "core.yaml has no icl_tasks"),
    "no list": (YAML_OF, None, "icl_tasks: {a: 1}", "core.yaml has no icl_tasks"),
    "no fields": (YAML_OF, None, "icl_tasks: [trees]", "task 1 is 'trees', not fields"),
    "no name": (YAML_OF, "label: who, ", "", "core.yaml: task 2: it has no label"),
    "a number": (
        YAML_OF,
        "label: who",
        "label: 5",
        "core.yaml: task 2: its label is 5, where a name",
    ),
    "no file": (YAML_OF, "dataset_uri: who.jsonl, ", "", "task 2 (who): it has no dataset_uri"),
    "no shots": (YAML_OF, "num_fewshot: [0], ", "", "task 2 (who): it has no num_fewshot"),
    "one shot": (YAML_OF, "[0]", "0", "(who): its num_fewshot is 0, where a list of one"),
    "empty shots": (YAML_OF, "[0]", "[]", "(who): its num_fewshot is a list"),
    "shots in words": (YAML_OF, "[0]", "[two]", "(who): its num_fewshot is a list"),
    "another kind": (YAML_OF, "schema", "x", "(who): its icl_task_type is 'x', not one of"),
    "no delimiter": (YAML_OF, '""', "5", "(goes_on): its continuation_delimiter is 5, w"),
    "no column": ("eval_meta_data.csv", "Random ", "", "has no column 'Random baseline'"),
    "no row": ("eval_meta_data.csv", "trees,x,33.3", "", "has no row for the task trees"),
    "no rows": ("eval_meta_data.csv", None, "a", "has no row for the task trees"),
    "no value": ("eval_meta_data.csv", "trees,x,33.3", "trees,x", "task trees has 'Random basel"),
    "words": ("eval_meta_data.csv", "33.3", "a third", "'Random baseline' 'a third', no percent"),
    "all right": ("eval_meta_data.csv", "33.3", "100", "'Random baseline' '100', no percentage"),
    "no json": ("eval_data/who.jsonl", None, "\n{", "who.jsonl:2 is not valid JSON"),
    "a missing field": (
        *("eval_data/who.jsonl", None, '{"gold": 0}\n'),
        "who.jsonl:1: it has no context_options, where a list of texts should be",
    ),
    "no such answer": (
        *("eval_data/trees.jsonl", '"gold": 2', '"gold": 3'),
        "trees.jsonl:3: its gold is 3, where a whole number below 3 should be",
    ),
    "an answer in words": (
        "eval_data/trees.jsonl",
        '"gold": 2',
        '"gold": "2"',
        "gold is '2', where",
    ),
    "no answers": ("eval_data/trees.jsonl", None, '{"query": "a", "choices": []}', "choices is "),
    "numbers": (
        "eval_data/trees.jsonl",
        None,
        '{"query": "a", "choices": [1]}',
        "choices is a list",
    ),
    "no text": ("eval_data/trees.jsonl", None, '{"query": 1}', "its query is 1, where a text"),
    "no questions": ("eval_data/who.jsonl", None, "\n", "who.jsonl holds no questions"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_bundle_is_one_line(bundle, case):
    name, old, new, said = BROKEN[case]
    path = bundle / name
    text = path.read_text()
    assert old is None or old in text
    path.write_text(new if old is None else text.replace(old, new, 1))
    with pytest.raises(UserError) as e:
        read_bundle(bundle)
    assert said in one_line(e) and str(bundle) in str(e.value)


@pytest.mark.parametrize("name", ["core.yaml", "eval_meta_data.csv", "eval_data/who.jsonl"])
def test_a_missing_file_is_one_line(bundle, name):
    (bundle / name).unlink()
    with pytest.raises(UserError, match="No such file") as e:
        read_bundle(bundle)
    assert name in one_line(e)


def test_a_question_with_nothing_before_its_answer():
    """Contexts that are the same to their first token; and no token that begins a text."""
    model = tiny(3, block_size=16, vocab_size=257).eval()
    twice = {"context_options": ["", ""], "continuation": "b", "gold": 0}
    same = Task("same", "schema", [twice], 0, "", 0.0)
    lone = {"query": "", "choices": ["a", "b"], "gold": 0}
    alone = Task("alone", "multiple_choice", [lone], 0, "", 0.0)
    for task in (same, alone):
        assert task_accuracy(model, ByteTokenizer(), task, runtime(), 2) in (0.0, 1.0)
    with pytest.raises(UserError, match="a question of alone has an answer with nothing before"):
        task_accuracy(model, CharTokenizer.from_text("ab"), alone, runtime(), 2)
    longer = Task("longer", "multiple_choice", [{**lone, "choices": ["ab", "bb"]}], 0, "", 0.0)
    assert task_accuracy(model, CharTokenizer.from_text("ab"), longer, runtime(), 2) in (0.0, 1.0)
