# MEGABYTE on small pictures, byte by byte. image_bytes.py makes the data, sets the context and the
# patches, and trains with this file: the 8 x 8 digits in about 2 minutes on two CPU cores.
# Expected: below 2 bits per byte on the digits held out (2.95 from the histogram alone).
eval_interval = 250
eval_iters = 0
log_interval = 50
always_save_checkpoint = False  # keep the best, not the last

model = "megabyte"
gradient_accumulation_steps = 1
batch_size = 32
batch_order = "epoch"

n_layer = 4
local_layer = 2
local_head = 2
local_embd = 96
norm = "rmsnorm"
activation = "relu2"
qk_norm = True
dropout = 0.1

learning_rate = 2e-3
min_lr = 0.0
warmup_iters = 50
beta2 = 0.98  # the paper's
