"""The GPT, complete in this file. It needs only torch (and bonsai/ for a cache or others' weights).

`GPTConfig()` is GPT-2 (Radford et al. 2019) as nanoGPT builds it: the same parameter names, the
same order of random draws (so the same seed gives the same weights), the same arithmetic. Each of
the other fields is a choice that some later model made, independent of the others; a modern GPT is
a config file that sets them. Shapes in the comments: B rows, T positions, C = n_embd channels,
V = vocab_size, nh heads of size hs (nkv of them for keys and values).

    model = GPT(GPTConfig(n_layer=6, n_head=6, n_embd=384))
    logits, loss = model(idx, targets)          # idx, targets (B, T) int64; logits (B, T, V)
    ids = model.generate(idx, 100)              # (B, T + 100)

This file computes everything as it stands. Programs also set some attributes from outside:

    attend, activate, head_loss, rotation   faster equivalents of what has not been edited here, see
                                            bonsai/models/edits.py: bonsai/models/kernels.py
    transformer.h, linear layers            faster ones to write texts: bonsai/engine/weights.py
    wte, values, bigrams                    sum their gradients in place: bonsai/models/embedding.py
    narrowed, further                       schedules of training: bonsai/training/schedule.py
"""

import math
from dataclasses import dataclass
from importlib import import_module

import torch
import torch.nn as nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


@dataclass
class GPTConfig:
    block_size: int = 1024  # context length, in tokens [>= 1]
    vocab_size: int = 50304  # GPT-2's 50257, rounded up to a multiple of 64 for speed [>= 1]
    n_layer: int = 12  # blocks [>= 1]
    n_head: int = 12  # heads of the attention [>= 1]
    n_embd: int = 768  # channels of the residual stream [>= 1]
    dropout: float = 0.0  # 0 for pretraining; for finetuning try 0.1 or more [>= 0, < 1]
    bias: bool = True  # biases in the linear layers (and the norms, see norm_bias)
    # choices beyond GPT-2
    n_kv_head: int = 0  # heads for keys and values, shared by groups of queries; 0: n_head [>= 0]
    head_size: int = 0  # channels of one head; 0: n_embd / n_head [>= 0]
    norm: str = "layernorm"  # [layernorm | rmsnorm]
    norm_gain: bool = True  # learn a gain per channel in the norms
    norm_bias: bool | str = "auto"  # biases in the layer norms; auto: like bias [auto | on | off]
    norm_placement: str = "pre"  # post: as in GPT-1 and the Transformer of 2017 [pre | post]
    norm_embedding: bool = False  # one more norm, after the embedding
    position: str = "learned"  # [learned | sinusoidal | rope | none]
    rope_base: float = 10000.0  # base of the rotary frequencies [> 0]
    activation: str = "gelu"  # gelu_tanh: OpenAI's [gelu | gelu_tanh | relu | relu2 | swiglu]
    qk_norm: bool = False  # normalise queries and keys in each head, by the kind of `norm`
    attention_scale: float = 0.0  # factor on the scores; 0: 1 / sqrt(head_size) [>= 0]
    tie_head: bool = True  # share the embedding's weights with the output head
    logit_softcap: float = 0.0  # cap * tanh(logits / cap); 0: off [>= 0]
    zero_init: bool = False  # projections into the residual stream and an untied head start at 0
    init: str = "gpt2"  # fan_in: variance 1 / (3 fan_in), embedding N(0, 1) [gpt2 | fan_in]
    attention_window: int = 0  # positions that a local layer sees, its own included; 0: all [>= 0]
    window_pattern: str = "L"  # layer by layer, repeated: L local, D dense ('DL' as in GPT-3)
    residual_lambdas: bool = False  # learned weights, per layer, of the stream and its first state
    value_embeddings: bool = False  # in every other layer tokens add values of their own, gated
    bigram_embeddings: int = 0  # rows per token id of a table of hashed token pairs; 0: none [>= 0]
    activation_checkpointing: bool = False  # recompute in the backward pass, to save memory
    bfloat16_stream: bool = False  # with products in bfloat16, have the residual stream so, too

    def __post_init__(self) -> None:
        """Raise ValueError, with the numbers, for choices that do not go together."""
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                value, known = getattr(self, name), ", ".join(map(str, allowed))
                raise ValueError(f"{name}={value!r} is not one of {known}")
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")
        if not self.rope_base > 0:
            raise ValueError(f"rope_base={self.rope_base} must be above 0")
        pattern = self.window_pattern
        if self.attention_window < 0 or not pattern or set(pattern) - {*"DL"}:
            raise ValueError(
                f"attention_window={self.attention_window} must be at least 0 and window_pattern="
                f"{pattern!r} of the letters D and L"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be at least 0 and below 1")
        if self.n_embd % self.n_head and not self.head_size:
            raise ValueError(f"n_embd={self.n_embd} is not divisible by n_head={self.n_head}")
        if self.n_head % self.kv_heads:
            raise ValueError(f"n_head={self.n_head} is not divisible by n_kv_head={self.n_kv_head}")
        if self.position == "rope" and self.head_dim % 2:
            raise ValueError(f"rope needs an even head size, not {self.head_dim}")

    @property
    def head_dim(self) -> int:
        return self.head_size or self.n_embd // self.n_head

    @property
    def kv_heads(self) -> int:
        return self.n_kv_head or self.n_head

    def window(self, layer: int) -> int:
        """Positions that a layer sees, its own included; 0: all."""
        local = self.window_pattern[layer % len(self.window_pattern)] == "L"
        return self.attention_window if local else 0

    def attention_flops(self, T: int) -> int:
        """Forward FLOPs per token of all layers' attention at context T, without its matrices.

        4 per channel of the heads and per position that a layer sees (not halved for causality, so
        that MFU compares with what others publish).
        """
        seen = sum(min(T, self.window(layer) or T) for layer in range(self.n_layer))
        return 4 * self.n_head * self.head_dim * seen

    def has_value_embedding(self, layer: int) -> bool:
        """Every other layer, the last one included."""
        return self.value_embeddings and (self.n_layer - 1 - layer) % 2 == 0


# nanoGPT's model_args, in its order
CLASSIC_KEYS = ("n_layer", "n_head", "n_embd", "block_size", "bias", "vocab_size", "dropout")


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


def relu2(x: torch.Tensor) -> torch.Tensor:
    """Primer, So et al. 2021."""
    return F.relu(x).square()


def swiglu(x: torch.Tensor) -> torch.Tensor:
    """Shazeer 2020: (..., 2 C) -> (..., C)."""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": gelu_tanh,
    "relu": F.relu,
    "relu2": relu2,
    "swiglu": swiglu,
}

CHOICES = {  # what a field may be, in --help, too
    "init": ("gpt2", "fan_in"),
    "norm": ("layernorm", "rmsnorm"),
    "norm_bias": ("auto", True, False),
    "norm_placement": ("pre", "post"),
    "position": ("learned", "sinusoidal", "rope", "none"),
    "activation": ACTIVATIONS,
}
LEAST = dict.fromkeys(("block_size", "vocab_size", "n_layer", "n_head", "n_embd"), 1)
LEAST |= dict.fromkeys(("n_kv_head", "head_size", "logit_softcap", "bigram_embeddings"), 0)


class Norm(nn.Module):
    """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang & Sennrich 2019) with optional gain and bias."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.rms = config.norm == "rmsnorm"
        self.shape = (config.n_embd,)
        bias = config.bias if config.norm_bias == "auto" else config.norm_bias
        self.weight = nn.Parameter(torch.ones(config.n_embd)) if config.norm_gain else None
        self.bias = nn.Parameter(torch.zeros(config.n_embd)) if bias and not self.rms else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.rms:  # in one dtype: for two torch has no fused kernel, and warns each time
            x = x if self.weight is None else x.type_as(self.weight)
            return F.rms_norm(x, self.shape, self.weight, 1e-5)
        return torch.layer_norm(x, self.shape, self.weight, self.bias, 1e-5)


# ---- positions ----


def sinusoids(pos: torch.Tensor, channels: int) -> torch.Tensor:
    """Fixed positions (Vaswani et al. 2017, section 3.5): pos (..., T) -> (..., T, channels)."""
    i = torch.arange(0, channels, 2, device=pos.device, dtype=torch.float32)
    angle = pos[..., None] / 10000 ** (i / channels)  # (..., T, ceil(channels/2))
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2)[..., :channels]


def rope_angles(pos: torch.Tensor, head_dim: int, base: float) -> tuple[torch.Tensor, torch.Tensor]:
    """pos (..., T) -> cos and sin of the rotary angles, each (..., T, head_dim) in fp32.

    The first half of sin is negated, as `rotate` needs it.
    """
    i = torch.arange(0, head_dim, 2, device=pos.device, dtype=torch.float32)
    angle = pos[..., None] * base ** (-i / head_dim)  # (..., T, head_dim/2)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotary positions (RoPE, Su et al. 2021): turn each pair of channels by its angle.

    x (..., hs); rotation: cos and sin of rope_angles, in a shape that broadcasts with x, such as
    (T, hs) with (B, nh, T, hs). A pair is the channels i and i + hs/2.
    """
    cos, sin = (r.to(x.dtype) for r in rotation)
    return torch.addcmul(x * cos, x.roll(x.size(-1) // 2, dims=-1), sin)


def rotation_at(model: nn.Module, pos: torch.Tensor, cache):
    """rope_angles of the positions pos (..., T) in a model, a GPT or a Decoder; None without rope.

    Without a cache pos is 0 ... T - 1, and the model's table `rotation` is used, if it has one.
    """
    c, T = model.config, pos.size(-1)
    if c.position != "rope":
        return None
    if cache is None and model.rotation is not None and model.rotation.size(1) >= T:
        return model.rotation[:, :T]
    return rope_angles(pos, c.head_dim, c.rope_base)


# ---- attention ----

GATE = 12  # channels of the stream that decide how much of a value embedding is taken


def causal_mask(T: int, S: int, window: int, device) -> torch.Tensor:
    """(T, S) bool: which of S positions the last T of them see, those after them never.

    window: how many they see, their own included; 0: all.
    """
    back = torch.arange(S - T, S, device=device)[:, None] - torch.arange(S, device=device)
    return (back >= 0) & (back < (window or S))


def attention(q, k, v, mask, window: int, scale: float, dropout: float) -> torch.Tensor:
    """softmax(scale q k^T) v: q (B, nh, T, hs), k and v (B, nkv, S, hs) -> like q.

    mask (T, S) or (B, 1, T, S) bool: where a query sees a key. Without a mask a single query sees
    all keys, and T = S queries see the positions up to their own, or the last `window` of those.
    """
    T, S = q.size(2), k.size(2)
    if mask is None and 0 < window < T:
        mask = causal_mask(T, S, window, q.device)
    causal = True if mask is None and T > 1 else False  # noqa: SIM210 - a bool, when T is symbolic
    grouped = True if k.size(1) != q.size(1) else False  # noqa: SIM210 - for torch.jit.trace
    return F.scaled_dot_product_attention(
        q, k, v, mask, dropout, causal, scale=scale, enable_gqa=grouped
    )


class CausalSelfAttention(nn.Module):
    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.layer, self.dropout = layer, config.dropout
        self.qk_norm, self.rms = config.qk_norm, config.norm == "rmsnorm"
        self.nh, self.nkv, self.hs = config.n_head, config.kv_heads, config.head_dim
        self.scale = config.attention_scale or 1 / math.sqrt(self.hs)
        self.attend = attention  # or a faster one: bonsai/models/kernels.py, bonsai/engine/cpu
        self.window = config.window(layer)
        self.narrowed = 1  # training divides the window by this: schedule.set_windows
        # queries, keys and values by one product; Muon treats each row_block rows of its weight as
        # a matrix of its own (bonsai/training/muon.py)
        width = (self.nh + 2 * self.nkv) * self.hs
        self.c_attn = nn.Linear(config.n_embd, width, bias=config.bias)
        self.c_attn.weight.row_block = math.gcd(self.nh, self.nkv) * self.hs
        self.c_proj = nn.Linear(self.nh * self.hs, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)
        self.gate = None
        if config.has_value_embedding(layer):
            self.gate = nn.Linear(min(GATE, config.n_embd), self.nkv, bias=False)

    def forward(self, x, rotation=None, cache=None, values=None):
        """x (B, T, C) -> (B, T, C).

        rotation: cos and sin for the positions, each (T, hs) or (B, 1, T, hs). cache: holds the
        keys and values of the tokens before x. values: value embeddings (B, T, nkv hs).
        """
        B, T, _ = x.shape
        qkv = self.c_attn(x).view(B, T, -1, self.hs)
        # (B, T, nh + nkv, hs) and (B, T, nkv, hs). Heads move in front of positions only after all
        # that is done element by element, so that a compiler fuses that, and its gradients, into
        # one pass over memory
        qk, v = qkv.split_with_sizes((self.nh + self.nkv, self.nkv), dim=2)
        if values is not None:
            gate = 3 * torch.sigmoid(self.gate(x[..., : self.gate.in_features]))  # (B, T, nkv)
            v = (v + gate[..., None] * values.view(B, T, self.nkv, -1)).to(qkv.dtype)
        if self.qk_norm:  # Henry et al. 2020, Dehghani et al. 2023; here without gains
            qk = (F.rms_norm if self.rms else F.layer_norm)(qk, (self.hs,))
        if rotation is not None:
            qk = rotate(qk, [r.view(-1, T, 1, self.hs) for r in rotation])
        qk = qk.to(qkv.dtype)  # now, while they are one tensor: again a single pass
        qkv = *qk.split_with_sizes((self.nh, self.nkv), dim=2), v
        q, k, v = (part.transpose(1, 2) for part in qkv)  # (B, nh or nkv, T, hs)
        mask = None
        if cache is not None:  # keys and values of all tokens so far, and which of them are seen
            k, v, mask = cache.update(self.layer, k, v, self.window)
        # self.training is read only where it matters, as a compiled model that reads it needs a
        # second graph for evaluations
        window, dropout = self.window, 0.0
        if self.dropout and self.training:
            dropout = self.dropout
        if self.narrowed > 1 and self.training:
            window = max(1, (window or T) // self.narrowed)
        y = self.attend(q, k, v, mask, window, self.scale, dropout)  # (B, nh, T, hs)
        y = y.transpose(1, 2).contiguous().view(B, T, self.nh * self.hs)  # heads side by side
        return self.resid_dropout(self.c_proj(y))


# ---- the loss ----


def cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, further: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean cross-entropy in nats of logits (B, T, V), over the targets (B, T) that are not -1.

    further: None, or the weight (a tensor) of a second loss, for which the same logits predict the
    token after next. It changes the gradients, not the value that is returned. In multi-token
    prediction (Gloeckle et al. 2024) each further token has a head of its own; one head for both,
    and a weight that falls to 0, are modded-nanogpt's.
    """
    logits = logits.view(-1, logits.size(-1))
    loss = F.cross_entropy(logits, targets.flatten(), ignore_index=-1)
    if further is not None:
        after = F.pad(targets[:, 1:], (0, 1), value=-1).flatten()
        second = F.cross_entropy(logits, after, ignore_index=-1, reduction="sum")
        second = further * second / (targets >= 0).sum()
        loss = loss + (second - second.detach())  # adds 0, and the gradient of `second`
    return loss


def head_loss(model: nn.Module, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """cross_entropy of the logits model.head(x), with x (B, T, C) and targets (B, T).

    A function of its own, so that the logits, the largest tensor of a training step, are read by
    nothing else: a compiler need not write them in fp32.
    """
    further = model.further if torch.is_grad_enabled() else None
    return cross_entropy(model.head(x), targets, further)


# ---- the rest of a block, and the model ----


def dtype_of_products(x: torch.Tensor) -> torch.dtype:
    """The dtype in which a product with x is computed: autocast's if that is on, else x's own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def bigram_hash(before: torch.Tensor, idx: torch.Tensor, rows: int) -> torch.Tensor:
    """The table row of each pair of tokens (before, idx), both int64. Different pairs may share a
    row.

    As in modded-nanogpt; BLT (Pagnoni et al. 2024) has such tables for n-grams of bytes.
    """
    return (27191 * before ^ 36313 * idx) % rows


class MLP(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        hidden = 4 * config.n_embd
        gates = 2 if config.activation == "swiglu" else 1
        self.c_fc = nn.Linear(config.n_embd, gates * hidden, bias=config.bias)
        self.c_proj = nn.Linear(hidden, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)
        self.activation = config.activation
        self.activate = ACTIVATIONS[config.activation]  # or a faster one, like `attend`

    def forward(self, x):
        return self.dropout(self.c_proj(self.activate(self.c_fc(x))))


class Block(nn.Module):
    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.ln_1 = Norm(config)
        self.attn = CausalSelfAttention(config, layer)
        self.ln_2 = Norm(config)
        self.mlp = MLP(config)
        self.post = config.norm_placement == "post"

    def forward(self, x, rotation=None, cache=None, values=None):
        """The residual stream x (B, T, C) -> (B, T, C). The other arguments go to the attention."""
        if self.post:
            x = self.ln_1(x + self.attn(x, rotation, cache, values)).type_as(x)
            return self.ln_2(x + self.mlp(x)).type_as(x)
        x = x + self.attn(self.ln_1(x), rotation, cache, values)
        return x + self.mlp(self.ln_2(x))


# the groups of parameters that an optimizer may treat differently
GROUPS = ("matrices", "embeddings", "tables", "head", "scalars", "residual")
TABLES = ("values", "bigrams")  # names of the embeddings that start at 0


def zero_embedding(rows: int, width: int) -> nn.Embedding:
    """An embedding of zeros, made without nn.Embedding's random numbers, which would only be
    overwritten: for 464M weights they take two seconds."""
    # requires_grad marks the zeros as weights, for which a loader need not fill memory (fit.py)
    return nn.Embedding.from_pretrained(torch.zeros(rows, width, requires_grad=True), freeze=False)


class GPT(nn.Module):
    context_step = 1  # a full context moves on by multiples of this many tokens
    further = None  # weight of cross_entropy's second loss; schedule.set_further sets it
    head_loss = staticmethod(head_loss)  # bonsai/models/head_loss.py has others that save memory

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict()
        self.transformer.wte = nn.Embedding(config.vocab_size, config.n_embd)
        if config.position == "learned":
            self.transformer.wpe = nn.Embedding(config.block_size, config.n_embd)
        if config.norm_embedding:
            self.transformer.ln_e = Norm(config)
        self.transformer.drop = nn.Dropout(config.dropout)
        self.transformer.h = nn.ModuleList(Block(config, i) for i in range(config.n_layer))
        # with norms after the parts of a block (GPT-1), the last block ends in the final norm
        post = config.norm_placement == "post"
        self.transformer.ln_f = nn.Identity() if post else Norm(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_head:  # Press & Wolf 2017
            self.transformer.wte.weight = self.lm_head.weight
        if config.value_embeddings:  # Zhou et al. 2024, as in modded-nanogpt
            width = config.kv_heads * config.head_dim
            layers = filter(config.has_value_embedding, range(config.n_layer))
            self.values = nn.ModuleDict(
                {str(i): zero_embedding(config.vocab_size, width) for i in layers}
            )
        if config.bigram_embeddings:
            rows = config.bigram_embeddings * config.vocab_size
            self.bigrams = zero_embedding(rows, config.n_embd)
        if config.residual_lambdas:  # modded-nanogpt, 2024
            self.residual_lambdas = nn.Parameter(torch.empty(config.n_layer))
            self.x0_lambdas = nn.Parameter(torch.empty(config.n_layer))
        # rope_angles of all positions, (2, block_size, hs). bonsai/models/kernels.py sets it on a
        # GPU, where a compiler would compute them anew for every element of every layer
        self.register_buffer("rotation", None, persistent=False)
        self.init_weights()

    def init_weights(self) -> None:
        """GPT-2's: N(0, 0.02), residual projections scaled by 1/sqrt(2 n_layer), biases 0.

        The order of the draws is part of the contract: the same seed gives nanoGPT's weights. So
        weights that start at 0 are drawn, too, because the draws after them depend on it. Not drawn
        are those at the end of the order, and the tables, which nanoGPT does not have. It is for a
        new model: gains of norms stay 1, and tables 0, as they were made. To begin anew, make one.
        """
        c = self.config
        draws: list[tuple[nn.Parameter, float]] = []  # (weights, standard deviation)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding) and not name.startswith(TABLES):
                std = 0.02
                if c.init == "fan_in":
                    linear = isinstance(module, nn.Linear)
                    std = (3 * module.in_features) ** -0.5 if linear else 1.0
                draws.append((module.weight, std))
                if getattr(module, "bias", None) is not None:
                    nn.init.zeros_(module.bias)
        zeroed = set()
        for name, p in self.named_parameters():
            if name.endswith("c_proj.weight") and c.init == "gpt2":
                draws.append((p, 0.02 / math.sqrt(2 * c.n_layer)))
            zeros = ("c_proj.weight", "lm_head.weight") if c.zero_init else ()
            if name.endswith((*zeros, "gate.weight")):
                zeroed.add(p)
        while draws and draws[-1][0] in zeroed:
            draws.pop()
        for p, std in draws:
            nn.init.normal_(p, std=std)
        for p in zeroed:
            nn.init.zeros_(p)
        if c.residual_lambdas:
            down = torch.linspace(1, 0, c.n_layer)
            with torch.no_grad():
                self.residual_lambdas.copy_(1.05 + 0.1 * down)
                self.x0_lambdas.copy_(0.05 + 0.15 * down)

    def forward(
        self,
        idx: torch.Tensor,
        targets: torch.Tensor | None = None,
        cache=None,
        return_logits: bool = True,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """idx (B, T) int64 -> logits (B, T, V) and mean cross-entropy in nats over targets (B, T).

        Targets of -1 are ignored. Without targets the loss is None and the logits are those of the
        last position, (B, 1, V). cache: from `new_cache`; idx are the tokens after those in it.
        return_logits: False if only the loss is wanted; then the logits are returned as None, and
        need not be in memory all at once.
        """
        T, start = idx.size(1), cache.used if cache is not None else 0
        limit = self.config.block_size if cache is None else cache.length
        assert start + T <= limit, f"{start + T} tokens do not fit a context of {limit}"
        pos = torch.arange(T, device=idx.device) if cache is None else cache.place(T)  # (T,)
        x = self.transformer.wte(idx)  # (B, T, C)
        if self.config.bigram_embeddings:
            before = F.pad(idx[:, :-1], (1, 0)) if cache is None else cache.before(idx)
            x = x + self.bigrams(bigram_hash(before, idx, self.bigrams.num_embeddings))
        if self.config.position == "learned":
            x = x + self.transformer.wpe(pos).view(-1, T, x.size(2))
        elif self.config.position == "sinusoidal":
            x = x + sinusoids(pos, self.config.n_embd).view(-1, T, x.size(2)).type_as(x)
        if self.config.norm_embedding:
            x = self.transformer.ln_e(x)
        x = self.transformer.drop(x)
        if self.config.bfloat16_stream and dtype_of_products(x) == torch.bfloat16:
            x = x.bfloat16()  # autocast leaves embeddings, which are no products, in fp32
        rotation = rotation_at(self, pos, cache)
        x0, values = x, None
        for i, block in enumerate(self.transformer.h):
            if self.config.residual_lambdas:
                x = self.residual_lambdas[i] * x + self.x0_lambdas[i] * x0
            if self.config.value_embeddings:
                values = self.values[str(i)](idx) if str(i) in self.values else None
            if self.config.activation_checkpointing and self.training:
                x = checkpoint(block, x, rotation, None, values, use_reentrant=False)
            else:
                x = block(x, rotation, cache, values)
        x = self.transformer.ln_f(x)
        if cache is not None:
            cache.advance(T)
        return self.logits_and_loss(x, targets, return_logits)

    def logits_and_loss(self, x: torch.Tensor, targets: torch.Tensor | None, return_logits: bool):
        """What forward returns, from the last state of the residual stream, x (B, T, C)."""
        if targets is None:
            return self.head(x[:, -1:]), None  # a slice: x[:, [-1]] would copy a list to the GPU
        logits = self.head(x) if return_logits else None
        loss = cross_entropy(logits, targets) if return_logits else self.head_loss(self, x, targets)
        return logits, loss  # training wants the loss alone: what is added to it needs no logits

    def head(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., C) -> logits (..., V) in fp32; of a model in float64, in float64."""
        logits = self.lm_head(x)
        if logits.dtype != torch.float64:
            logits = logits.float()
        if cap := self.config.logit_softcap:  # Gemma 2, 2024
            logits = cap * torch.tanh(logits / cap)
        return logits

    def new_cache(self, batch: int, length: int = 0, dtype=None, device=None):
        """An empty cache for `batch` rows of up to `length` tokens (default: block_size)."""
        # not by an import statement: transformers would look for bonsai/ where a copy of this file
        # is used without it (export.py --to=hf_code)
        cache = import_module("bonsai.models.cache")
        return cache.KVCache.of(self, batch, length, dtype, device)

    @torch.no_grad()
    def generate(
        self,
        idx: torch.Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
    ) -> torch.Tensor:
        """Continue idx (B, T) by max_new_tokens: (B, T + max_new_tokens). temperature 0 is greedy.

        The short loop, which computes the whole context anew for every token. The tests compare
        bonsai/engine/ with it, which is faster.
        """
        for _ in range(max_new_tokens):
            logits, _ = self(idx[:, -self.config.block_size :])
            logits = logits[:, -1, :]  # (B, V)
            if temperature == 0:
                idx_next = logits.argmax(dim=-1, keepdim=True)
            else:
                logits = logits / temperature
                if top_k:
                    kth = torch.topk(logits, min(top_k, logits.size(-1))).values[:, [-1]]
                    logits = logits.masked_fill(logits < kth, -math.inf)
                idx_next = torch.multinomial(F.softmax(logits, dim=-1), num_samples=1)
            idx = torch.cat((idx, idx_next), dim=1)
        return idx

    # ---- sizes and costs ----

    def num_params(self, non_embedding: bool = True) -> int:
        """How many parameters; by default without those that are only looked up, not multiplied.

        The token embedding counts when it is also the head.
        """
        n = sum(p.numel() for p in self.parameters())
        if non_embedding:
            groups, head = self.param_groups(), self.lm_head.weight
            looked_up = groups["embeddings"] + groups["tables"]
            n -= sum(p.numel() for p in looked_up if p is not head)
        return n

    get_num_params = num_params  # nanoGPT's name

    def flops_per_token(self, T: int | None = None) -> float:
        """Training FLOPs per token at context T (PaLM, Chowdhery et al. 2022, appendix B).

        6 per parameter: 2 in the forward pass, 4 in the backward pass. The attention likewise takes
        three times its forward FLOPs: 12 per layer, channel of the heads and position seen.
        """
        return 6 * self.num_params() + 3 * self.config.attention_flops(T or self.config.block_size)

    def estimate_mfu(self, fwdbwd_per_iter: int, dt: float, peak_flops: float = 312e12) -> float:
        """Share of peak_flops used by fwdbwd_per_iter rows of block_size tokens in dt seconds.

        The default peak is an A100's in bf16, as in nanoGPT; bonsai/system/devices.py knows others.
        """
        return self.flops_per_token() * self.config.block_size * fwdbwd_per_iter / dt / peak_flops

    def channels_per_token(self) -> int:
        """Channels of the stream in all layers together, from which memory is estimated."""
        return self.config.n_layer * self.config.n_embd

    def serial_layers(self) -> int:
        """Layers that a generated token waits for, one after another."""
        return self.config.n_layer

    # ---- optimizers ----

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """The parameters by kind, for optimizers that treat them differently; each in one group."""
        groups = {name: [] for name in GROUPS}
        for name, p in self.named_parameters():  # names a tied tensor once, as the embedding
            if name.startswith(("transformer.wte", "transformer.wpe")):
                groups["embeddings"].append(p)
            elif name.startswith(TABLES):
                groups["tables"].append(p)
            elif name.startswith("lm_head"):
                groups["head"].append(p)
            elif name == "residual_lambdas":
                groups["residual"].append(p)
            else:
                small = p.dim() < 2 or name.endswith("gate.weight")
                groups["scalars" if small else "matrices"].append(p)
        return groups

    def configure_optimizers(
        self,
        weight_decay: float,
        learning_rate: float,
        betas: tuple[float, float],
        device_type: str,
        eps: float = 1e-8,
        make: type[torch.optim.AdamW] = torch.optim.AdamW,
    ) -> torch.optim.AdamW:
        """AdamW in nanoGPT's two groups: tensors of two or more dimensions decay, others don't.

        make: the class of the optimizer.
        """
        params = [p for p in self.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in params if p.dim() >= 2], "weight_decay": weight_decay},
            {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0},
        ]
        fused = device_type in ("cuda", "cpu", "mps")
        return make(groups, lr=learning_rate, betas=betas, eps=eps, fused=fused)

    # ---- weights from elsewhere ----

    def crop_block_size(self, block_size: int) -> None:
        """Shorten the context, for example of a pretrained model: drop the later positions."""
        assert block_size <= self.config.block_size
        self.config.block_size = block_size
        if self.config.position == "learned":
            wpe = self.transformer.wpe
            wpe.weight = nn.Parameter(wpe.weight[:block_size].detach().clone())
            wpe.num_embeddings = block_size

    @classmethod
    def from_pretrained(cls, source: str, override_args: dict | None = None) -> "GPT":
        """GPT-2 from the Hugging Face hub ('gpt2', 'gpt2-medium', ...) or from a local folder.

        override_args: fields to change, such as dropout. Raises ValueError, in one line, if there
        is no such model.
        """
        hugging_face = import_module("bonsai.models.hugging_face")
        return hugging_face.pretrained(cls, source, override_args or {})
