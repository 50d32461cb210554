# OpenAI's gpt2-xl (1558M parameters) evaluated on OpenWebText: 500 batches of each split.
# Cost: 8.2M tokens forward, 26 PFLOP: minutes on a GPU, days on a CPU; loads 6.2 GB. Estimated.
# Expected validation loss: 2.54 (nanoGPT's figure; not measured here).
# $ python train.py config/eval_gpt2_xl.py
batch_size = 8
eval_iters = 500
eval_only = True
wandb_log = False
init_from = "gpt2-xl"
