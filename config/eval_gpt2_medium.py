# OpenAI's gpt2-medium (350M parameters) evaluated on OpenWebText: 500 batches of each split.
# Cost: 8.2M tokens forward, 5.7 PFLOP: minutes on a GPU, hours on a CPU; loads 1.4 GB. Estimated.
# Expected validation loss: 2.84 (nanoGPT's figure; not measured here).
# $ python train.py config/eval_gpt2_medium.py
batch_size = 8
eval_iters = 500
eval_only = True
wandb_log = False
init_from = "gpt2-medium"
