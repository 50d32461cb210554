# The loss of nanoGPT's CPU recipe on Tiny Shakespeare in a twentieth of its time: 0.95M parameters.
# Cost: 133,120 tokens; 4.3 s on two CPU cores with AVX512-BF16 (nanoGPT: 91 s).
# Expected validation loss: 1.88 on the whole split (see docs/BENCHMARKS.md).
# $ python data/shakespeare_char/prepare.py
# $ python train.py config/fast_shakespeare_char_cpu.py

# the fast recipe; below is what this run changes and adds
from bonsai.planning.recipe import *

out_dir = "out-fast-shakespeare-char-cpu"
eval_interval = 130
eval_iters = 40
log_interval = 10

dataset = "shakespeare_char"
gradient_accumulation_steps = 1
batch_size = 16
block_size = 64

n_layer = 2
n_head = 4
n_embd = 128
rope_base = 10000.0
norm = "layernorm"  # without gain or bias; on a CPU faster than rmsnorm
attention_scale = 0.0
attention_window = 8
window_pattern = "LD"

learning_rate = 0.045
embedding_lr = 0.3
head_lr = 0.02
momentum = 0.9
momentum_warmup = 0
adam_eps = 1e-8
weight_decay = 0.0
cautious_decay = False
cooldown = 0.6
max_iters = 130

bigram_embeddings = 65  # the text's 1,380 pairs of characters have 1,182 rows
# nothing else of the recipe's second edition; docs/BENCHMARKS.md has what it would bring
value_embeddings = False
further_weight = 0.0
neuron_beta = 0.0
table_decay = 0.0
