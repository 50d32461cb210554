"""Reads what minGPT's projects save, model.pt: the tensors of a model by their names, no more.

They are the tensors of a GPT-2 by nanoGPT's names, with an untied head, and with causal masks among
them; its GELU is computed by tanh. The number of heads is in the config.json that minGPT writes
beside the file, if the model was given by its sizes. Most are of one of minGPT's model types, for
which it follows from the sizes of the tensors.
"""

from pathlib import Path

from bonsai.files.access import exists
from bonsai.files.jsonfile import read_json_object
from bonsai.runs.schema import is_dict, is_tensor, is_whole
from bonsai.system.errors import UserError

HEADS = {  # (layers, channels) of its model types: heads
    **{(12, 768): 12, (24, 1024): 16, (36, 1280): 20, (48, 1600): 25},  # GPT-1 and GPT-2
    **{(8, 512): 16, (6, 192): 6, (4, 128): 4, (3, 48): 3},  # gopher-44m, gpt-mini, -micro, -nano
}
WTE, WPE, HEAD = "transformer.wte.weight", "transformer.wpe.weight", "lm_head.weight"
MASK = "transformer.h.{}.attn.bias"


def is_mingpt(content: object) -> bool:
    """Whether this is the content of one of minGPT's files."""
    if not is_dict(content) or not all(map(is_tensor, content.values())):
        return False
    if not {WTE, WPE, HEAD, MASK.format(0)} <= content.keys() or content[WTE].dim() != 2:
        return False
    return content[WTE].data_ptr() != content[HEAD].data_ptr()  # nanoGPT ties the two


def mingpt_checkpoint(weights: dict, path: Path) -> dict:
    """The weights as a checkpoint that says which model they are. UserError if the number of heads
    cannot be found out."""
    layers = sum(MASK.format(i) in weights for i in range(len(weights)))
    (rows, channels), wpe = weights[WTE].shape, weights[WPE].shape
    heads = heads_beside(path) or HEADS.get((layers, channels))
    if not heads:
        raise UserError(
            f"{path} holds weights of minGPT's, {layers} layers of {channels} channels, and does "
            "not say how many heads: the config.json that minGPT wrote has to be beside it"
        )
    sizes = {"n_layer": layers, "n_head": heads, "n_embd": channels, "block_size": (*wpe, 1)[0]}
    classic = {**sizes, "bias": True, "vocab_size": rows, "dropout": 0.0}
    config = {**classic, "activation": "gelu_tanh", "tie_head": False}
    return {"model": weights, "model_args": classic, "model_config": config}


def heads_beside(path: Path) -> int | None:
    """n_head of minGPT's config.json in the same folder, if it has one."""
    beside = path.with_name("config.json")
    model = read_json_object(beside).get("model") if exists(beside) else None
    heads = model.get("n_head") if isinstance(model, dict) else None
    return heads if is_whole(heads, 1, 2**20) else None
