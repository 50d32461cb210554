"""The table of architectures, and every way to get a model with weights.

An architecture is one file and one line in MODELS: its class and its dataclass of settings. The
contract: Model(config); model(idx, targets=None) -> (logits, loss); model(idx, cache=cache) with
cache = model.new_cache(batch, length); num_params(), flops_per_token(T), crop_block_size(n),
param_groups(), configure_optimizers(...). idx (B, T) int64; logits (B, T, V), or (B, 1, V) without
targets; a target of -1 is ignored.
"""

import urllib.error
import urllib.request
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch.nn as nn

from bonsai.errors import UserError
from bonsai.megabyte import Megabyte, MegabyteConfig
from bonsai.restore import load_checkpoint, run_checkpoint
from bonsai.spacebyte import Spacebyte, SpacebyteConfig
from model import CLASSIC_KEYS, GPT, GPTConfig

MODELS = {
    "gpt": (GPT, GPTConfig),
    "megabyte": (Megabyte, MegabyteConfig),
    "spacebyte": (Spacebyte, SpacebyteConfig),
}
CONFIGS = {name: config for name, (_, config) in MODELS.items()}

# what a run may change about a model whose weights it loads; all else is fixed by the weights
RUN_FIELDS = ("dropout", "activation_checkpointing")


@dataclass
class Loaded:
    """A model and where it came from."""

    model: nn.Module
    name: str  # key of MODELS
    tokenizer: dict | None  # Tokenizer.to_dict(), None where the source does not carry one
    config: dict  # settings of the run that trained it
    source: str
    checkpoint: dict | None = None  # for a resume


def build_model(name: str, settings: dict) -> nn.Module:
    """A new model from settings (others than its fields are ignored); UserError if they clash."""
    if name not in MODELS:
        raise UserError(f"model={name} is not one of {', '.join(MODELS)}")
    make, make_config = MODELS[name]
    try:
        known = {f.name for f in fields(make_config)}
        return make(make_config(**{k: v for k, v in settings.items() if k in known}))
    except ValueError as e:
        raise UserError(e) from None


def load_model(init_from: str, out_dir: str | Path, overrides: dict | None = None) -> Loaded:
    """A model with weights.

    init_from: 'resume' (the newest checkpoint of out_dir), 'best' (the one to sample from), a
    checkpoint file or a run's folder, a Hugging Face folder, or gpt2, gpt2-medium, gpt2-large,
    gpt2-xl. overrides: settings, of which those in RUN_FIELDS are taken. Raises UserError.
    """
    overrides = {k: v for k, v in (overrides or {}).items() if k in RUN_FIELDS}
    if init_from in ("resume", "best"):
        return from_checkpoint(run_checkpoint(out_dir, newest=init_from == "resume"), overrides)
    path = Path(init_from)
    if path.is_file():
        return from_checkpoint(path, overrides)
    if path.is_dir() and not (path / "config.json").exists():
        return from_checkpoint(run_checkpoint(path), overrides)
    if path.is_dir() and any(path.glob("*.pt")):  # a run keeps its settings in config.json too
        return from_checkpoint(run_checkpoint(path), overrides)
    if path.is_dir() or init_from in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"):
        return from_hugging_face(init_from, overrides)
    raise UserError(
        f"init_from={init_from}: there is no such checkpoint or folder, and no such GPT-2 (gpt2, "
        "gpt2-medium, gpt2-large, gpt2-xl)"
    )


def from_checkpoint(path: Path, overrides: dict) -> Loaded:
    checkpoint = load_checkpoint(path)
    # nanoGPT's checkpoints have only its seven fields; the rest are GPT-2's defaults
    model_fields = checkpoint.get("model_config") or checkpoint["model_args"]
    name = checkpoint.get("model_name", "gpt")
    model = build_model(name, {**model_fields, **overrides})
    try:
        model.load_state_dict(checkpoint["model"])
    except RuntimeError as e:
        first = str(e).splitlines()[1].strip() if "\n" in str(e) else str(e)
        raise UserError(f"{path} does not fit the model it describes: {first[:200]}") from None
    config = checkpoint.get("config", {})
    return Loaded(model, name, checkpoint.get("tokenizer"), config, str(path), checkpoint)


def from_hugging_face(source: str, overrides: dict) -> Loaded:
    try:
        if not Path(source).is_dir():
            use_cache_if_offline()
        model = GPT.from_pretrained(source, overrides)
    except ImportError:
        raise UserError("loading GPT-2 needs transformers: pip install transformers") from None
    except OSError:
        raise UserError(
            f"could not load {source} from the Hugging Face hub (no network?): download it where "
            "there is one and give its folder, --init_from=FOLDER"
        ) from None
    except (ValueError, RuntimeError) as e:
        raise UserError(e) from None
    tokenizer = {"type": "gpt2"} if model.config.vocab_size in (50257, 50304) else None
    return Loaded(model, "gpt", tokenizer, {}, source)


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


def describe_model(model: nn.Module, name: str) -> dict:
    """The keys of a checkpoint that say which model it holds."""
    settings = asdict(model.config)
    return {
        "model_args": {k: settings[k] for k in CLASSIC_KEYS if k in settings},
        "model_config": settings,
        "model_name": name,
    }
