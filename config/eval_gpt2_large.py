# OpenAI's gpt2-large (774M parameters) evaluated on OpenWebText: 500 batches of each split.
# Expected validation loss: 2.67 (nanoGPT's figure; not measured here).
# $ python train.py config/eval_gpt2_large.py
batch_size = 8
eval_iters = 500
eval_only = True
wandb_log = False
init_from = "gpt2-large"
