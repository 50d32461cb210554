"""Linear layers on a CPU for inference: by linear.cpp for few rows, by oneDNN for more."""

from ctypes import c_int, c_int64, c_void_p

import torch
from torch import nn
from torch.nn import functional as F

from bonsai.engine.cpu.native import build, functions
from bonsai.engine.cpu.pages import LargePages

# The most rows for which linear.cpp is faster:
FEW_ROWS = {torch.float32: 16, torch.bfloat16: 4}  # than oneDNN
FEW_TILES = 64  # than oneDNN, in bfloat16 with the matrix unit
FEW_UNPACKED = 12  # than a product in float32, if torch refuses to pack weights of the dtype


class FastLinear(nn.Module):
    """A linear layer for inference only. It has no hooks: torch's search for them takes as long as
    a small product.

    It has nn.Linear's attributes, too: some modules, such as torch's TransformerEncoderLayer, do
    not call their layers but read the weights, which are then converted each time.
    """

    shape: tuple[int, int]  # (out_features, in_features)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward(x)

    @property
    def out_features(self) -> int:
        return self.shape[0]

    @property
    def in_features(self) -> int:
        return self.shape[1]


def call(
    product,
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """x (..., k), weight (n, k), scale and bias (n) in float32 -> y (..., n).

    product: one of `products`. weight: int8 with a scale, or of x's dtype without one.
    """
    (n, k), x = weight.shape, x.contiguous()
    y = torch.empty((*x.shape[:-1], n), dtype=x.dtype)
    addresses = [None if t is None else t.data_ptr() for t in (weight, scale, bias, x, y)]
    product(*addresses, x.numel() // k, n, k, torch.get_num_threads())
    return y


def products() -> dict:
    """The products of linear.cpp by the activations' dtype; empty if it cannot be built."""
    return functions("linear", "linear", *[c_void_p] * 5, *[c_int64] * 3, c_int)


def has_tiles() -> bool:
    """Whether linear.cpp multiplies int8 and bfloat16 with the CPU's matrix unit (AMX)."""
    library = build("linear")
    return bool(library and library.linear_has_tiles())


# torch packs weights in half precision only if the CPU has instructions for it
SUPPORTED = {
    torch.bfloat16: "_is_mkldnn_bf16_supported",
    torch.float16: "_is_mkldnn_fp16_supported",
}


def torch_packs(dtype: torch.dtype) -> bool:
    name = SUPPORTED.get(dtype)
    return name is None or getattr(torch.ops.mkldnn, name, bool)()


def packs(device: torch.device, dtype: torch.dtype | None) -> bool:
    """Whether a PackedLinear can be made: torch has oneDNN's kernels and the operators that
    torch.compile uses to call them, and either these or linear.cpp support the dtype, if given."""
    return (
        device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and all(
            hasattr(torch.ops.mkldnn, name)
            for name in ("_reorder_linear_weight", "_linear_pointwise")
        )
        and (dtype is None or torch_packs(dtype) or dtype in products())
    )


class PackedLinear(FastLinear):
    """nn.Linear on the CPU, with two copies of the weights, each laid out for one kind of product.

    A few rows (a decoding step) are multiplied by linear.cpp, with weights in large pages; more
    rows by oneDNN, which does not have to reorder the weights in every call as in nn.Linear.
    Without a C++ compiler oneDNN multiplies all, except one row in float32: a plain matrix-vector
    product starts faster. If torch refuses to pack the weights, many rows are multiplied in
    float32.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype, pages: LargePages):
        super().__init__()
        weight = linear.weight.detach().to(dtype)
        self.packed = None
        if torch_packs(dtype):
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, 16)
        self.bias = None if linear.bias is None else linear.bias.detach().to(dtype)
        self.bias32 = None if self.bias is None else self.bias.float()
        self.product = products().get(dtype)
        few = 1 if dtype == torch.float32 else 0
        if self.product:
            tiles = has_tiles() and dtype == torch.bfloat16 and weight.size(1) % 32 == 0
            few = FEW_TILES if tiles else FEW_ROWS[dtype]
            few = few if self.packed is not None else FEW_UNPACKED
        self.plain = None if not few else pages.copy(weight) if self.product else weight
        self.dtype, self.shape = dtype, tuple(weight.shape)
        self.few = few * self.in_features  # in numbers of the input

    @property
    def weight(self) -> torch.Tensor:
        return self.packed.to_dense() if self.plain is None else self.plain

    def direct(self) -> tuple[torch.Tensor, None] | None:
        """The weights for block.cpp, without scales; None if there are none that it can read."""
        return (self.plain, None) if self.product else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.numel() > self.few or x.dtype != self.dtype:
            if self.packed is None:
                return F.linear(x.float(), self.plain.float(), self.bias32).to(x.dtype)
            return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        if self.product is None:
            row = x.view(-1)
            y = self.plain @ row if self.bias is None else torch.addmv(self.bias, self.plain, row)
            return y.view(*x.shape[:-1], -1)
        return call(self.product, x, self.plain, None, self.bias32)
