# MEGABYTE on sound, byte by byte: 0.25 s of context at 4,000 samples a second. sound_bytes.py makes
# the data and trains with this file: 600 steps take some 6 minutes on two CPU cores.
# Expected: below 6 bits per byte on the tunes held out (7 from the histogram of the samples).
eval_interval = 200
eval_iters = 20
log_interval = 50
always_save_checkpoint = False  # keep the best, not the last

model = "megabyte"
gradient_accumulation_steps = 1
batch_size = 8
block_size = 1024

patch_size = 8
n_layer = 3
n_head = 6
n_embd = 384
local_layer = 3
local_head = 4
local_embd = 128
position = "rope"
norm = "rmsnorm"
activation = "relu2"
qk_norm = True

learning_rate = 1.5e-3
min_lr = 0.0
warmup_iters = 50
beta2 = 0.98  # the paper's
