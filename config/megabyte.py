# MEGABYTE on the source text of Python's standard library, byte by byte: 3.2M parameters.
# Cost: 4.1M bytes; 277 s on one CPU core with AVX512-BF16.
# Expected validation loss: 1.29 on the whole split, 1.86 bits per byte (1.84 strided).
# $ python data/python_stdlib/prepare.py
# $ python train.py config/megabyte.py
out_dir = "out-megabyte"
eval_interval = 250
eval_iters = 16
log_interval = 10
always_save_checkpoint = False  # keep the best, not the last

dataset = "python_stdlib"
gradient_accumulation_steps = 1
batch_size = 4
block_size = 2048
batch_order = "epoch"

# four wide layers over patches of four bytes, two narrow ones within each
model = "megabyte"
patch_size = 4
n_layer = 4
n_head = 4
n_embd = 240
local_layer = 2
local_head = 4
local_embd = 128
bias = False
position = "rope"
norm = "rmsnorm"
norm_gain = False
qk_norm = True
activation = "relu2"

# Muon for the matrices, AdamW for the rest
optimizer = "muon"
learning_rate = 0.02
embedding_lr = 0.1
head_lr = 4e-3
lr_schedule = "trapezoid"
cooldown = 0.6
warmup_iters = 20
min_lr = 0.0
max_iters = 500
