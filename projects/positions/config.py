# A byte-level GPT of 0.8M parameters on the source of Python's standard library, for one kind of
# positions; projects/positions/positions.py names the kind and trains with this file.
# Cost: 1.0M bytes, about a minute on one CPU core. Expected validation loss: 1.7 to 2.3 in the
# later half of a window, by the kind.
dataset = "python_stdlib"
eval_interval = 250
eval_iters = 20
log_interval = 50

gradient_accumulation_steps = 1
batch_size = 16
block_size = 128
batch_order = "epoch"

n_layer = 4
n_head = 4
n_embd = 128
# an embedding of N(0, 1) with a head of its own: beside GPT-2's, of N(0, 0.02), the sinusoids,
# which are as large as 1, would hide what the token is (the paper of 2017 scales by sqrt(n_embd))
init = "fan_in"
tie_head = False
zero_init = True

learning_rate = 2e-3
min_lr = 0.0
warmup_iters = 50
beta2 = 0.99
