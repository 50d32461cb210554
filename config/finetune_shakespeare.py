# GPT-2 finetuned on Shakespeare's plays.
# Cost: 20 steps of 32,768 tokens, 9.2 steps to a pass over the text; the loss to expect was not
# measured here. Larger: --init_from=gpt2-medium, gpt2-large or gpt2-xl (which nanoGPT takes here,
# and which does not fit a 24 GB GPU).
# $ python data/shakespeare/prepare.py
# $ python train.py config/finetune_shakespeare.py
import time

out_dir = "out-shakespeare"
eval_interval = 5
eval_iters = 40
wandb_log = False
wandb_project = "shakespeare"
wandb_run_name = "ft-" + str(time.time())

dataset = "shakespeare"
init_from = "gpt2"
always_save_checkpoint = False  # keep the best, not the last

batch_size = 1
gradient_accumulation_steps = 32
max_iters = 20

learning_rate = 3e-5
decay_lr = False
