# A decoder-only GPT that translates: rows `source <sep> target <end>`, the loss on the target only;
# as large as the encoder-decoder beside it, 7.1M parameters. projects/translate/translate.py
# --compare=True trains with this file. Cost: 2,250 steps, 5 passes over 29,000 rows of 96 tokens,
# 48 minutes on one CPU core. Expected validation loss: 2.04 (BLEU 33).
dataset = "multi30k"
eval_interval = 450
eval_iters = 16  # of 64 rows: all of the validation split
log_interval = 50
always_save_checkpoint = False  # keep the best

gradient_accumulation_steps = 1
batch_size = 64
block_size = 95
batch_order = "epoch"

n_layer = 7
n_head = 4
n_embd = 256
dropout = 0.1

learning_rate = 1e-3
min_lr = 0.0
warmup_iters = 400
beta2 = 0.98
