# A 124M-class GPT on FineWeb by the fast recipe: 124M parameters of products, 464M looked up.
# Cost: 1.7B tokens; not measured here (one H100: about an hour at 486K tokens/s, 42% of its peak;
# an H200 took 58 ms for a micro-batch and 11 for an update: with 16 of them 51 minutes).
# Expected validation loss: not measured here; below 3.28, which modded-nanogpt's simple baseline,
# of which the recipe's first edition is a blend, reached with as many tokens.
# To 3.28 on one H100 at that speed, calculated, not measured: 1.46B tokens (--max_iters=2790) in 50
# minutes if what is new in the second edition is worth what was published of each part; 1.14B
# (--max_iters=2170) in 39 minutes if what it saves at 1.3M parameters, a third, held at 124M.
# $ python data/fineweb/prepare.py
# $ python train.py config/fast_gpt2.py
# $ torchrun --standalone --nproc_per_node=8 train.py config/fast_gpt2.py

# the fast recipe; below is what this run changes and adds
from bonsai.planning.recipe import *

out_dir = "out-fast-gpt2"
eval_interval = 250
eval_iters = 40
log_interval = 10
save_interval = 500

# 32 rows x 1024 tokens x 16 micro-batches = 524,288 tokens per step, on 1 to 16 GPUs
dataset = "fineweb"
batch_size = 32
block_size = 1024
gradient_accumulation_steps = 16
max_iters = 3250

n_layer = 12
n_head = 6
n_embd = 768
