# A 124M-class GPT on FineWeb by the fast recipe.
# Cost: 1.7B tokens; not measured here (one H100: about an hour at 500K tokens/s).
# Expected validation loss: 3.28 is what the recipe this blends reached with as many tokens
# (modded-nanogpt's simple baseline); not measured here.
# $ python data/fineweb/prepare.py
# $ python train.py config/fast_gpt2.py
# $ torchrun --standalone --nproc_per_node=8 train.py config/fast_gpt2.py

# the fast recipe; below stands what is this run's own
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
