# A byte-level GPT of 0.8M parameters on the source text of Python's standard library.
# Cost: 61 s of training (2.0M tokens) on two CPU cores with AVX512-BF16.
# Expected validation loss: 1.34, which is 1.94 bits per byte.
# $ python data/python_stdlib/prepare.py
# $ python train.py config/quickstart.py
out_dir = "out-quickstart"
eval_interval = 200
eval_iters = 40
log_interval = 10
always_save_checkpoint = False  # keep the best, not the last

dataset = "python_stdlib"
gradient_accumulation_steps = 1
batch_size = 16
block_size = 128
batch_order = "epoch"

# a small modern GPT: rotary positions, norms without gain, squared ReLU, zero-init projections
n_layer = 4
n_head = 2
n_embd = 128
position = "rope"
norm = "rmsnorm"
norm_gain = False
qk_norm = True
activation = "relu2"
zero_init = True

learning_rate = 5e-3
lr_schedule = "trapezoid"
cooldown = 0.6
min_lr = 0.0
warmup_iters = 20
max_iters = 1000
lr_decay_iters = 1000
beta2 = 0.99  # a step has few tokens
