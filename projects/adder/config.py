# A GPT that adds: minGPT's 2 layers, 4 heads and 128 channels, 0.4M parameters.
# projects/adder/adder.py makes the data and trains with this file; 2 digits take about a minute on
# two CPU cores. Expected: all 10,000 sums right, a loss on the held-out ones below 0.01.
eval_interval = 125
eval_iters = 1
log_interval = 50
always_save_checkpoint = True

gradient_accumulation_steps = 1
batch_size = 512
batch_order = "epoch"

n_layer = 2
n_head = 4
n_embd = 128
bias = True

learning_rate = 2e-3
min_lr = 0.0
warmup_iters = 50
keep_last = 10  # checkpoints: adder.py draws a map of each
beta2 = 0.99

dtype = "float32"
