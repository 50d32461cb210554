"""A stand-in for a checkout of nanoGPT, with what the benchmarks use of it: its model is ours, its
train.py prints and leaves what nanoGPT's does."""

from pathlib import Path

from helpers.programs import ROOT

MODEL = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("ours", {str(ROOT / "model.py")!r})
ours = importlib.util.module_from_spec(spec)
sys.modules["ours"] = ours
spec.loader.exec_module(ours)
GPTConfig = ours.GPTConfig
class GPT(ours.GPT):
    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        print("the peer's own optimizer")
        return super().configure_optimizers(weight_decay, learning_rate, betas, device_type)
"""
TRAIN = """
import os
import sys
import torch
from model import GPT, GPTConfig
given = dict(a[2:].split("=", 1) for a in sys.argv[1:] if "=" in a)
assert all(os.path.exists(a) for a in sys.argv[1:] if "=" not in a)  # config files
torch.manual_seed(1337)
print("tokens per iteration will be: 64")
open(f"data/{given['dataset']}/train.bin", "rb").close()
args = dict(n_layer=1, n_head=1, n_embd=16, block_size=16, bias=False)
args |= dict(vocab_size=30, dropout=0.0)
model = GPT(GPTConfig(**args))
optimizer = torch.optim.SGD(model.parameters(), lr=float(given.get("learning_rate", 0.1)))
for i in range(int(given["max_iters"]) + 1):
    x = torch.randint(args["vocab_size"], (4, 16))
    loss = model(x, x)[1]
    loss.backward()
    optimizer.step()
    print(f"iter {i}: loss {loss.item():.4f}, time 1.00ms, mfu 1.00%")
os.makedirs(given["out_dir"])
state = {"model": model.state_dict(), "model_args": args, "iter_num": i, "best_val_loss": 1.0}
torch.save({**state, "config": {}}, given["out_dir"] + "/ckpt.pt")
"""


def make_peer(folder: Path) -> Path:
    (folder / "config").mkdir(parents=True)
    for name in ("train_shakespeare_char", "train_gpt2"):
        (folder / "config" / f"{name}.py").write_text("")
    (folder / "model.py").write_text(MODEL)
    (folder / "train.py").write_text(TRAIN)
    (folder / "configurator.py").write_text("")
    return folder
