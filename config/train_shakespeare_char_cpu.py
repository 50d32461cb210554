# nanoGPT's recipe for a laptop: 0.80M parameters on the characters of Tiny Shakespeare, on a CPU.
# Cost: 1.5M tokens; 72 s in float32 on two cores, less in bfloat16 where the CPU computes in it.
# Expected validation loss: 1.90 on the whole split (mean of 3 seeds; see docs/BENCHMARKS.md).
# $ python data/shakespeare_char/prepare.py
# $ python train.py config/train_shakespeare_char_cpu.py
out_dir = "out-shakespeare-char"
device = "cpu"
compile = False
eval_interval = 250
eval_iters = 20
log_interval = 1
always_save_checkpoint = False  # keep the best, not the last

dataset = "shakespeare_char"
gradient_accumulation_steps = 1
batch_size = 12
block_size = 64

n_layer = 4
n_head = 4
n_embd = 128
dropout = 0.0

learning_rate = 1e-3
max_iters = 2000
lr_decay_iters = 2000
min_lr = 1e-4
beta2 = 0.99
warmup_iters = 100
