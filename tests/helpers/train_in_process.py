"""Settings of small runs of train.py, which tests call in their own process."""

import ast

from helpers.programs import TINY


def literal(text: str):
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


SMALL = {k: literal(v) for k, v in (word[2:].split("=") for word in TINY)}
SMALL |= dict(n_layer=1, n_embd=16, eval_interval=2, dropout=0.0, gradient_accumulation_steps=1)
MACHINE = dict(device="cpu", dtype="float32", compile=False)  # of the command, not of the run
MODELS = {
    "gpt": {},
    "muon": dict(optimizer="muon", n_kv_head=1, position="rope"),
    "megabyte": dict(model="megabyte", patch_size=4, local_layer=1, local_embd=16, local_head=2),
    "spacebyte": dict(
        model="spacebyte", local_window=8, local_layer=2, local_embd=16, local_head=2
    ),
}
