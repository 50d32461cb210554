# A GPT on FineWeb by the fast recipe: 354M parameters that are multiplied, about as many as GPT-2
# medium has in all, and 927M in embedding tables, which are only looked up.
# Cost: 4.2B tokens; not measured here.
# Expected validation loss: not measured here; below config/fast_gpt2.py, whose rates it has, scaled
# $ python data/fineweb/prepare.py
# $ python train.py config/fast_gpt2_medium.py
# $ torchrun --standalone --nproc_per_node=8 train.py config/fast_gpt2_medium.py

# the fast recipe; below is what this run changes and adds
from bonsai.planning.recipe import *

out_dir = "out-fast-gpt2-medium"
eval_interval = 250
eval_iters = 40
log_interval = 10
save_interval = 500

# 16 rows x 1024 tokens x 32 micro-batches = 524,288 tokens per step, on 1 to 32 GPUs
dataset = "fineweb"
batch_size = 16
block_size = 1024
gradient_accumulation_steps = 32
max_iters = 8000

n_layer = 24
n_head = 8
n_embd = 1024
bfloat16_stream = True  # a GPU waits for its memory in norms and sums; a CPU does not

# lower rates of embedding and head than the recipe's, as the model is wider
embedding_lr = 0.6
head_lr = 0.0035
table_decay = 0.001  # and the run longer
