# OpenAI's gpt2-large (774M parameters) evaluated on OpenWebText: 500 batches of each split.
# Cost: 8.2M tokens forward, 13 PFLOP: minutes on a GPU, a day on a CPU; loads 3.1 GB. Estimated.
# Expected validation loss: 2.67 (nanoGPT's figure; not measured here).
# $ python train.py config/eval_gpt2_large.py
batch_size = 8
eval_iters = 500
eval_only = True
wandb_log = False
init_from = "gpt2-large"
