# One run of a scaling sweep: a byte-level GPT on the source of Python's standard library;
# projects/scaling/scaling.py sets the size and the number of steps and trains with this file.
# Cost: seconds to a minute on two CPU cores. Expected validation loss: 1.3 to 2.5.
dataset = "python_stdlib"
eval_interval = 1000000  # at the end alone
eval_iters = 100
log_interval = 100
always_save_checkpoint = False

gradient_accumulation_steps = 1
batch_size = 16
block_size = 128
batch_order = "epoch"

# rotary positions, norms without gain, zero-init projections: even small models train fast
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
beta2 = 0.99
