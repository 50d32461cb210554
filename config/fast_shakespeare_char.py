# The loss that nanoGPT reports for its GPU recipe on Tiny Shakespeare, on a CPU: 4.7M parameters.
# Cost: 5.3M tokens; about 8 minutes on two CPU cores with AVX512-BF16.
# Expected validation loss: 1.459 on the whole split (three seeds, 1.448 to 1.465; nanoGPT's is
# 1.4697 after 82M tokens).
# $ python data/shakespeare_char/prepare.py
# $ python train.py config/fast_shakespeare_char.py
# 1.439 (three seeds, 1.434 to 1.446) after 20 passes over the text, an hour on one core:
# $ python train.py config/fast_shakespeare_char.py --token_noise=0.1 --max_iters=2400

# the fast recipe; below is what this run changes and adds
from bonsai.planning.recipe import *

out_dir = "out-fast-shakespeare-char"
eval_interval = 130
eval_iters = 10
log_interval = 10
save_interval = 130

dataset = "shakespeare_char"
gradient_accumulation_steps = 1
batch_size = 32
block_size = 256

n_layer = 6
n_head = 4
n_embd = 256
dropout = 0.1
rope_base = 10000.0
norm = "layernorm"  # without gain or bias; on a CPU faster than rmsnorm
attention_scale = 0.0
attention_window = 32
window_pattern = "LD"

learning_rate = 0.02
embedding_lr = 0.2
head_lr = 0.008
momentum_warmup = 100
adam_eps = 1e-8
weight_decay = 0.0
cautious_decay = False
cooldown = 0.6
max_iters = 650

# nothing of the recipe's second edition: this run was measured without it
value_embeddings = False
bigram_embeddings = 0
further_weight = 0.0
neuron_beta = 0.0
table_decay = 0.0
