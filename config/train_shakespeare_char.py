# A GPT of 10.65M parameters on the characters of Tiny Shakespeare, on one GPU.
# Cost: 82M tokens; nanoGPT reports 3 minutes on an A100.
# Expected validation loss: about 1.47 at its best, near step 1750 of 5000 (nanoGPT's figure; not
# measured here). On a CPU: config/train_shakespeare_char_cpu.py.
# $ python data/shakespeare_char/prepare.py
# $ python train.py config/train_shakespeare_char.py
out_dir = "out-shakespeare-char"
eval_interval = 250  # often, because it overfits
eval_iters = 200
log_interval = 10
always_save_checkpoint = False  # keep the best, not the last

wandb_log = False
wandb_project = "shakespeare-char"
wandb_run_name = "mini-gpt"

dataset = "shakespeare_char"
gradient_accumulation_steps = 1
batch_size = 64
block_size = 256

n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.2

learning_rate = 1e-3  # small networks take a higher one
max_iters = 5000
lr_decay_iters = 5000
min_lr = 1e-4
beta2 = 0.99  # a step has few tokens
warmup_iters = 100
