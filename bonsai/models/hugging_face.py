"""Reads GPT-2, Llama and NanoChat from Hugging Face's folders: config.json and weights, as data.

Nothing in a folder is executed, and transformers is not needed. Each field of transformers'
GPT2Config, LlamaConfig and NanoChatConfig that changes the logits is either followed or refused;
others are ignored, except that auto_map, which names code in the folder, is refused, too.
architectures.py has the names of their weights.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from bonsai.files.access import exists
from bonsai.files.jsonfile import read_json_object
from bonsai.files.safetensors import read_safetensors
from bonsai.files.torchfile import Damaged, Refused, read_torch_file
from bonsai.models.architectures import (
    CONV1D,
    EPSILON,
    from_rotary,
    widened,
    with_our_epsilon,
)
from bonsai.models.fit import WithoutDraws, check_fit, take_weights, without_masks
from bonsai.models.with_code import MODEL_TYPE, read_with_code
from bonsai.runs.schema import brief, is_dict, is_tensor, is_whole
from bonsai.system.errors import UserError
from bonsai.system.hub import use_cache_if_offline
from model import GPT, GPTConfig

CONFIG_BYTES = 4 * 2**20  # of config.json, and of the index of several files of weights
# our field -> GPT-2's name in config.json and transformers' alias for it, and the default
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
# fields that must have this value (or be missing), because the model here has no other
FIXED = {
    "layer_norm_epsilon": 1e-5,
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "quantization_config": None,
}
FLAGS = {  # booleans that may be set, and their defaults
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
}
# models with rotary positions -> fields of ours that their config.json does not state
ROTARY = {
    "llama": {"activation": "swiglu"},
    "nanochat": {"norm_gain": False, "norm_embedding": True, "qk_norm": True},
}
ROTARY_SIZES = {
    "vocab_size": "vocab_size",
    "block_size": "max_position_embeddings",
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
}
ROTARY_FIXED = {
    "llama": {"hidden_act": "silu", "quantization_config": None},
    "nanochat": {"attention_bias": False, "quantization_config": None},
}
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in the order in which they are looked for


def read_model(source: str | Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """Settings of GPTConfig, and the weights by the names of GPT.state_dict(), in float32.

    source: a folder, or a name on the Hugging Face hub, from which it is downloaded once. Raises
    UserError if it cannot be loaded, or if our GPT cannot be this model.
    """
    folder = Path(source) if Path(source).is_dir() else download(str(source))
    config = read_json_object(folder / "config.json", CONFIG_BYTES)
    kind = config.get("model_type")
    if kind not in ("gpt2", *ROTARY, MODEL_TYPE):
        name = brief(kind).strip("'\"")
        names = f"{name} model, not a gpt2, {' or '.join(ROTARY)}"
        raise UserError(f"{folder} holds a {names}")
    if config.get("auto_map") and kind != MODEL_TYPE:
        raise UserError(
            f"{folder}: config.json names code of its own for the model (auto_map). It is never "
            f"executed; if the weights are a plain {kind}'s, remove auto_map from it"
        )
    return assembled(config, folder, partial(read_weights, folder))


def assembled(
    config: dict, folder: Path, read: Callable[[], dict[str, torch.Tensor]]
) -> tuple[dict, dict[str, torch.Tensor]]:
    """The result of `read_model`, from config.json and from a function that reads the weights by
    transformers' names; it is called after config.json was checked. folder: for messages."""
    kind = config["model_type"]
    reader = {"gpt2": read_gpt2, MODEL_TYPE: read_with_code}.get(kind, read_rotary)
    settings, weights = reader(config, folder, read)
    wte, head = (weights.get(k) for k in ("transformer.wte.weight", "lm_head.weight"))
    if settings.get("tie_head") and wte is not None:
        if head is not None and not torch.equal(wte, head):
            settings["tie_head"] = False  # as transformers does it
        else:
            weights["lm_head.weight"] = wte
    check_fit(GPT, GPTConfig, settings, weights, folder)
    weights = {k: v.float() for k, v in weights.items()}
    if kind == "gpt2" and flag(config, "scale_attn_by_inverse_layer_idx", folder):
        divide_queries(weights, settings["n_layer"], settings["n_embd"])
    if kind in ROTARY and (eps := epsilon(config, folder)) != EPSILON:
        if kind == "nanochat" and settings["tie_head"]:
            raise UserError(f"{folder}: rms_norm_eps={eps} with a tied head is not supported")
        weights = with_our_epsilon(weights, GPTConfig(**settings), eps)
    return settings, weights


def read_gpt2(
    config: dict, folder: Path, read: Callable[[], dict]
) -> tuple[dict, dict[str, torch.Tensor]]:
    """Settings and weights of a GPT2LMHeadModel, by our names."""
    settings = gpt2_settings(config, folder)
    weights = without_masks(read())
    weights = {k.removeprefix("transformer."): v for k, v in weights.items()}
    weights = {k if k == "lm_head.weight" else f"transformer.{k}": v for k, v in weights.items()}
    return settings, {
        k: v.t() if k.endswith(CONV1D) and v.dim() == 2 else v for k, v in weights.items()
    }


def read_rotary(
    config: dict, folder: Path, read: Callable[[], dict]
) -> tuple[dict, dict[str, torch.Tensor]]:
    """Settings and weights of a LlamaForCausalLM or NanoChatForCausalLM, by our names."""
    settings, inner = rotary_settings(config, folder)
    weights = {k: v for k, v in read().items() if not k.endswith(".inv_freq")}
    if settings["n_layer"] > len(weights):
        return settings, weights  # which check_fit says
    try:
        sizes = GPTConfig(**settings)
    except ValueError as e:
        raise UserError(f"{folder} does not fit the model it describes: {e}") from None
    llama = config["model_type"] == "llama"
    if llama and inner < 4 * sizes.n_embd:
        weights = widened(weights, sizes, inner, folder)
    return settings, from_rotary(weights, sizes, llama)


def pretrained(make: type[GPT], source: str | Path, overrides: dict) -> GPT:
    """The model of `read_model`, with the fields in `overrides` changed. Raises its errors as
    ValueError, because model.py knows nothing of UserError."""
    try:
        settings, weights = read_model(source)
    except UserError as e:
        raise ValueError(e) from None
    with WithoutDraws():
        model = make(GPTConfig(**{**settings, **overrides}))
    take_weights(model, weights)
    return model


def gpt2_settings(config: dict, folder: Path) -> dict:
    """The fields of GPTConfig from a config.json; UserError for what our GPT cannot be."""
    settings = {"bias": True, "dropout": 0.0}
    for ours, (names, default) in SIZES.items():
        settings[ours] = size(config, names, default, folder)
    inner = config.get("n_inner")
    if inner is not None and inner != 4 * settings["n_embd"]:
        raise UserError(f"{folder}: n_inner={brief(inner)} of its config.json is not supported")
    check_fixed(config, FIXED, folder)
    settings["activation"] = activation(config, "activation_function", "gelu_new", folder)
    settings["attention_scale"] = 0.0 if flag(config, "scale_attn_weights", folder) else 1.0
    settings["tie_head"] = flag(config, "tie_word_embeddings", folder)
    return settings


def rotary_settings(config: dict, folder: Path) -> tuple[dict, int]:
    """The fields of GPTConfig from a config.json of Llama's or NanoChat's, and the number of hidden
    channels in its MLP."""
    kind = config["model_type"]
    settings = {k: size(config, (name,), None, folder) for k, name in ROTARY_SIZES.items()}
    heads, channels = settings["n_head"], settings["n_embd"]
    inner = size(config, ("intermediate_size",), None, folder)
    least = channels if kind == "llama" else 4 * channels
    if not least <= inner <= 4 * channels:
        raise UserError(
            f"{folder}: intermediate_size={inner} of its config.json is not supported, only "
            f"{'one to ' if kind == 'llama' else ''}four times its hidden_size={channels}"
        )
    groups = size(config, ("num_key_value_heads",), heads, folder)
    head = size(config, ("head_dim",), max(1, channels // heads), folder)
    check_fixed(config, ROTARY_FIXED[kind], folder)
    epsilon(config, folder)
    biased = [flag(config, name, folder) for name in ("attention_bias", "mlp_bias")]
    if kind == "llama" and biased[0] != biased[1]:
        raise UserError(f"{folder}: attention_bias without mlp_bias is not supported, nor reversed")
    return settings | ROTARY[kind] | {
        "norm": "rmsnorm",
        "position": "rope",
        "dropout": 0.0,
        "bias": biased[0],
        "n_kv_head": 0 if groups == heads else groups,
        "head_size": 0 if head * heads == channels else head,
        "rope_base": rope_base(config, folder),
        "tie_head": flag({"tie_word_embeddings": False, **config}, "tie_word_embeddings", folder),
        **(nanochat_fields(config, folder) if kind == "nanochat" else {}),
    }, inner


def epsilon(config: dict, folder: Path) -> float:
    """The number that the norms of a Llama or NanoChat add to the mean square."""
    eps = config.get("rms_norm_eps")
    eps = 1e-6 if eps is None else eps  # transformers' default
    # The norms of NanoChat's stream keep our epsilon: beside the stream, which begins normalised,
    # neither counts if it is this small
    most = 2e-5 if config["model_type"] == "nanochat" else 1e-2
    if type(eps) not in (int, float) or not 1e-12 <= eps <= most:
        raise UserError(f"{folder}: rms_norm_eps={brief(eps)} of its config.json is not supported")
    return eps


def nanochat_fields(config: dict, folder: Path) -> dict:
    """Fields of GPTConfig that NanoChat's config.json states and Llama's does not."""
    cap = config.get("final_logit_softcapping", 15.0)
    if cap is not None and (type(cap) not in (int, float) or not 0 < cap < 2**31):
        raise UserError(f"{folder}: config.json has final_logit_softcapping={brief(cap)}")
    return {
        "logit_softcap": float(cap or 0),
        "activation": activation(config, "hidden_act", "relu2", folder),
    }


def rope_base(config: dict, folder: Path) -> float:
    """The base of the rotary frequencies; UserError if they are scaled in some other way."""
    rope = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta", 10000.0)}
    base = rope.get("rope_theta") if isinstance(rope, dict) else None
    if type(base) not in (int, float) or not 0 < base < 2**31:
        raise UserError(f"{folder}: config.json has rope_theta={brief(base)}")
    others = {k: v for k, v in rope.items() if k not in ("rope_theta", "rope_type")}
    if others or rope.get("rope_type", "default") != "default" or config.get("rope_scaling"):
        raise UserError(
            f"{folder}: rope_parameters or rope_scaling of its config.json are not supported, only "
            "rope_theta"
        )
    return float(base)


def size(config: dict, names: tuple[str, ...], default: int | None, folder: Path) -> int:
    """A whole number under one of `names`. Of two fields of Llama's null means the default."""
    value = next((config[name] for name in names if name in config), default)
    value = default if value is None and names[0] in ("num_key_value_heads", "head_dim") else value
    if not is_whole(value, 1, 2**31):
        raise UserError(f"{folder}: config.json has {names[0]}={brief(value)}")
    return value


def check_fixed(config: dict, fixed: dict, folder: Path) -> None:
    """Raise UserError if a field has another value than the only one that is supported here."""
    for key, only in fixed.items():
        value = config.get(key, only)
        if value != only and value is not None:
            raise UserError(f"{folder}: {key}={brief(value)} of its config.json is not supported")


def activation(config: dict, name: str, default: str, folder: Path) -> str:
    """model.py's name for the activation under `name`; UserError for an unknown one."""
    value = config.get(name, default)
    if not isinstance(value, str) or value not in ACTIVATIONS:
        raise UserError(
            f"{folder}: {name}={brief(value)} of its config.json is not supported, only "
            f"{', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[value]


def flag(config: dict, name: str, folder: Path) -> bool:
    """A field that is true or false; UserError for anything else."""
    value = config.get(name, FLAGS[name])
    if not isinstance(value, bool):
        raise UserError(f"{folder}: config.json has {name}={brief(value)}, not true or false")
    return value


def divide_queries(weights: dict[str, torch.Tensor], layers: int, channels: int) -> None:
    """Divide the scores of layer i (from 0) by i + 1, as scale_attn_by_inverse_layer_idx asks
    (Mistral, Karamcheti et al. 2021), by dividing the queries, to which they are proportional."""
    for i in range(layers):
        for part in ("weight", "bias"):
            name = f"transformer.h.{i}.attn.c_attn.{part}"
            weights[name] = weights[name].clone()
            weights[name][:channels] /= i + 1


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a folder by their names there, from one file or from several."""
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
    """The tensors of one file by their names; UserError if it is damaged or holds anything else."""
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
    """Download config and weights of a model from the hub; returns the folder in its cache."""
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
