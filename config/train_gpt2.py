# GPT-2 (124M) on OpenWebText.
# Cost: 300B tokens; nanoGPT reports 4 to 5 days on 8 A100 40GB.
# Expected validation loss: about 2.85 (nanoGPT's figure; not measured here).
# $ python data/openwebtext/prepare.py
# $ torchrun --standalone --nproc_per_node=8 train.py config/train_gpt2.py
wandb_log = True
wandb_project = "owt"
wandb_run_name = "gpt2-124M"

# 12 rows x 1024 tokens x 5 micro-batches x 8 GPUs = 491,520 tokens per step
batch_size = 12
block_size = 1024
gradient_accumulation_steps = 5 * 8

# 300B tokens in all
max_iters = 600000
lr_decay_iters = 600000

eval_interval = 1000
eval_iters = 200
log_interval = 10
save_interval = 1000

weight_decay = 1e-1
