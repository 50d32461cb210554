# A GPT of 1.8M parameters on the source of Python's standard library, in a vocabulary of its own.
# Cost: 1.5M tokens, 47 s on two cores with AVX512-BF16.
# Expected validation loss: 2.89, which is 1.295 bits per byte.
# $ python data/python_stdlib/prepare.py
# $ python train.py config/quickstart.py
out_dir = "out-quickstart"
eval_interval = 185
eval_iters = 100  # all of the validation split
log_interval = 10
always_save_checkpoint = False  # keep the best, not the last

dataset = "python_stdlib_bpe"
gradient_accumulation_steps = 1
batch_size = 8
block_size = 256  # tokens: some 800 characters
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
attention_window = 32
window_pattern = "LD"
value_embeddings = True  # the most of all choices here: a token's own values, without a product
tie_head = False
zero_init = True
init = "fan_in"

# Muon for the matrices, AdamW for the rest
optimizer = "muon"
learning_rate = 0.02
embedding_lr = 0.3
head_lr = 0.015
momentum = 0.85
momentum_warmup = 0
beta1 = 0.8
weight_decay = 0.0
grad_clip = 0.0

# constant, then linear to 0
lr_schedule = "trapezoid"
cooldown = 0.6
warmup_iters = 0
min_lr = 0.0
max_iters = 740
