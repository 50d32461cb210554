"""GPT-2 in the folders of Hugging Face: config.json and the weights, read as data.

Nothing of a folder is executed, and transformers is not needed: whatever a config.json names
(auto_map is code of the folder's own), it is either a field that is known here or left alone.
Each field of transformers' GPT2Config that changes the logits is honoured or refused.
"""

import urllib.error
import urllib.request
from pathlib import Path

import torch

from bonsai.files.access import exists
from bonsai.files.jsonfile import read_json_object
from bonsai.files.safetensors import read_safetensors
from bonsai.files.torchfile import Damaged, Refused, read_torch_file
from bonsai.models.fit import WithoutDraws, check_fit, without_masks
from bonsai.runs.schema import brief, is_dict, is_tensor, is_whole
from bonsai.system.errors import UserError
from model import GPT, GPTConfig

CONFIG_BYTES = 4 * 2**20  # of config.json, and of the index of several files of weights
# fields of ours: the names in config.json, transformers' alias after, and GPT-2's value
SIZES = {
    "vocab_size": (("vocab_size",), 50257),
    "block_size": (("n_positions", "max_position_embeddings"), 1024),
    "n_embd": (("n_embd", "hidden_size"), 768),
    "n_layer": (("n_layer", "num_hidden_layers"), 12),
    "n_head": (("n_head", "num_attention_heads"), 12),
}
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}
# what must have this value (or be left out), as the model here has no other
FIXED = {
    "layer_norm_epsilon": 1e-5,
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "quantization_config": None,
}
FLAGS = {  # these are honoured
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "tie_word_embeddings": True,
}
MATRICES = tuple(f"{m}.weight" for m in ("c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"))
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in the order in which they are looked for


def read_gpt2(source: str | Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """Settings of GPTConfig, and the weights by the names of GPT.state_dict(), in float32.

    source: a folder, or a name on the Hugging Face hub, from which it is downloaded once.
    Raises UserError for what cannot be loaded or is no GPT-2 that the model here can be.
    """
    folder = Path(source) if Path(source).is_dir() else download(str(source))
    config = read_json_object(folder / "config.json", CONFIG_BYTES)
    settings = gpt2_settings(config, folder)
    weights = without_masks(read_weights(folder))
    weights = {k.removeprefix("transformer."): v for k, v in weights.items()}
    weights = {k if k == "lm_head.weight" else f"transformer.{k}": v for k, v in weights.items()}
    wte, head = (weights.get(k) for k in ("transformer.wte.weight", "lm_head.weight"))
    if settings["tie_head"] and wte is not None:
        if head is not None and not torch.equal(wte, head):
            settings["tie_head"] = False  # as transformers does it
        else:
            weights["lm_head.weight"] = wte
    # OpenAI's Conv1D stores its matrix the other way round than nn.Linear
    weights = {k: v.t() if k.endswith(MATRICES) and v.dim() == 2 else v for k, v in weights.items()}
    check_fit(GPT, GPTConfig, settings, weights, folder)
    weights = {k: v.float() for k, v in weights.items()}
    if flag(config, "scale_attn_by_inverse_layer_idx", folder):
        divide_queries(weights, settings["n_layer"], settings["n_embd"])
    return settings, weights


def pretrained(make: type[GPT], source: str | Path, overrides: dict) -> GPT:
    """The model of `read_gpt2`, with other fields where `overrides` has them; its errors as
    ValueError, as model.py knows no other."""
    try:
        settings, weights = read_gpt2(source)
    except UserError as e:
        raise ValueError(e) from None
    with WithoutDraws():
        model = make(GPTConfig(**{**settings, **overrides}))
    model.load_state_dict(weights)
    return model


def gpt2_settings(config: dict, folder: Path) -> dict:
    """The fields of GPTConfig that a config.json says; UserError for what the GPT cannot be."""
    kind = config.get("model_type")
    if kind != "gpt2":
        raise UserError(f"{folder} holds a {brief(kind).strip(QUOTES)} model, not a gpt2")
    if config.get("auto_map"):
        raise UserError(
            f"{folder}: config.json names code of its own for the model (auto_map). It is never "
            "executed; if the weights are a plain GPT-2's, remove auto_map from it"
        )
    settings = {"bias": True, "dropout": 0.0}
    for ours, (names, default) in SIZES.items():
        value = next((config[name] for name in names if name in config), default)
        if not is_whole(value, 1, 2**31):
            raise UserError(f"{folder}: config.json has {names[0]}={brief(value)}")
        settings[ours] = value
    inner = config.get("n_inner")
    if inner is not None and inner != 4 * settings["n_embd"]:
        raise UserError(f"{folder}: n_inner={brief(inner)} of its config.json is not supported")
    for key, only in FIXED.items():
        value = config.get(key, only)
        if value != only and value is not None:
            raise UserError(f"{folder}: {key}={brief(value)} of its config.json is not supported")
    activation = config.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise UserError(
            f"{folder}: activation_function={brief(activation)} of its config.json is not "
            f"supported, only {', '.join(ACTIVATIONS)}"
        )
    settings["activation"] = ACTIVATIONS[activation]
    settings["attention_scale"] = 0.0 if flag(config, "scale_attn_weights", folder) else 1.0
    settings["tie_head"] = flag(config, "tie_word_embeddings", folder)
    return settings


QUOTES = "'\""


def flag(config: dict, name: str, folder: Path) -> bool:
    value = config.get(name, FLAGS[name])
    if not isinstance(value, bool):
        raise UserError(f"{folder}: config.json has {name}={brief(value)}, not true or false")
    return value


def divide_queries(weights: dict[str, torch.Tensor], layers: int, channels: int) -> None:
    """Scores of layer i (from 0) divided by i + 1, as scale_attn_by_inverse_layer_idx has it
    (Mistral, Karamcheti et al. 2021): in the queries, which the scores are proportional to."""
    for i in range(layers):
        for part in ("weight", "bias"):
            name = f"transformer.h.{i}.attn.c_attn.{part}"
            weights[name] = weights[name].clone()
            weights[name][:channels] /= i + 1


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a folder by the names that they have there, from one file or from several."""
    for name in WEIGHTS:
        if exists(folder / name):
            return read_tensors(folder / name)
        index = folder / f"{name}.index.json"
        if exists(index):
            places = read_json_object(index, CONFIG_BYTES).get("weight_map")
            if not is_dict(places) or not all(isinstance(p, str) for p in places.values()):
                raise UserError(f"{index} has no weight_map")
            files = sorted(set(places.values()))
            if any(Path(file).name != file for file in files):
                raise UserError(f"{index} names files that are not in {folder}")
            return {k: v for file in files for k, v in read_tensors(folder / file).items()}
    raise UserError(
        f"{folder} has no weights: it should have {WEIGHTS[0]} (weights of TensorFlow and Flax are "
        "not supported)"
    )


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    try:
        weights = read_torch_file(path)
    except (Damaged, Refused) as e:
        what = "is damaged" if isinstance(e, Damaged) else "was refused"
        raise UserError(f"{path} {what}: {e}") from None
    if not is_dict(weights) or not all(map(is_tensor, weights.values())):
        raise UserError(f"{path} holds more than tensors by their names")
    return weights


def download(name: str) -> Path:
    """The folder of a model of the hub in the cache of its library, with config and weights."""
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise UserError("loading GPT-2 needs huggingface_hub: pip install it") from None
    use_cache_if_offline()
    try:
        config = hf_hub_download(name, "config.json")
        hf_hub_download(name, "model.safetensors")
    except (OSError, ValueError):  # its errors are many kinds of these
        raise UserError(
            f"could not load {name} from the Hugging Face hub (no network?): download it where "
            "there is one and give its folder, --init_from=FOLDER"
        ) from None
    return Path(config).parent


def use_cache_if_offline() -> None:
    """Ask the hub once whether it can be reached; its library would retry for half a minute."""
    from huggingface_hub import constants

    try:
        urllib.request.urlopen(
            urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=10
        )
    except urllib.error.HTTPError:
        pass  # it answered
    except OSError:
        constants.HF_HUB_OFFLINE = True
