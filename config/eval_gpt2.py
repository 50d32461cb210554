# OpenAI's gpt2 (124M parameters) evaluated on OpenWebText: 500 batches of each split.
# Cost: 8.2M tokens forward, 2.0 PFLOP: minutes on a GPU, hours on a CPU; loads 0.5 GB. Estimated.
# Expected validation loss: 3.12 (nanoGPT's figure; not measured here).
# $ python train.py config/eval_gpt2.py
batch_size = 8
eval_iters = 500
eval_only = True
wandb_log = False
init_from = "gpt2"
