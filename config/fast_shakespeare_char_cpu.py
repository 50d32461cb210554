# The loss of nanoGPT's CPU recipe on Tiny Shakespeare in a tenth of its time: 0.8M parameters.
# Cost: 163,840 tokens; 5.7 s on two CPU cores with AVX512-BF16 (nanoGPT: 61 s).
# Expected validation loss: 1.88 on the whole split (see docs/BENCHMARKS.md).
# $ python data/shakespeare_char/prepare.py
# $ python train.py config/fast_shakespeare_char_cpu.py
out_dir = "out-fast-shakespeare-char-cpu"
eval_interval = 160
eval_iters = 40
log_interval = 10

dataset = "shakespeare_char"
gradient_accumulation_steps = 1
batch_size = 16
block_size = 64
batch_order = "epoch"

# the model; docs/fast-training.md says what each choice buys
n_layer = 4
n_head = 2
n_embd = 128
position = "rope"
norm = "layernorm"  # without gain or bias; on a CPU faster than rmsnorm
norm_gain = False
norm_embedding = True
qk_norm = True
activation = "relu2"
attention_window = 16
window_pattern = "LD"
tie_head = False
zero_init = True
init = "fan_in"
logit_softcap = 15.0

# Muon for the matrices, AdamW for the rest
optimizer = "muon"
learning_rate = 0.03
embedding_lr = 0.3
head_lr = 0.015
momentum = 0.9
momentum_warmup = 0
beta1 = 0.8
weight_decay = 0.0
grad_clip = 0.0

# constant, then linear to 0
lr_schedule = "trapezoid"
cooldown = 0.6
warmup_iters = 0
min_lr = 0.0
max_iters = 160
