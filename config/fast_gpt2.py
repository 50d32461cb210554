# A 124M-class GPT on FineWeb by the fast recipe.
# Cost: 1.7B tokens; not measured here (one H100: about an hour at 500K tokens/s).
# Expected validation loss: 3.28 is what the recipe this blends reached with as many tokens
# (modded-nanogpt's simple baseline); not measured here.
# $ python data/fineweb/prepare.py
# $ python train.py config/fast_gpt2.py
# $ torchrun --standalone --nproc_per_node=8 train.py config/fast_gpt2.py
out_dir = "out-fast-gpt2"
eval_interval = 250
eval_iters = 40
log_interval = 10
save_interval = 500

# 32 rows x 1024 tokens x 16 micro-batches = 524,288 tokens per step, on 1 to 16 GPUs
dataset = "fineweb"
batch_size = 32
block_size = 1024
gradient_accumulation_steps = 16
batch_order = "epoch"

n_layer = 12
n_head = 6
n_embd = 768
position = "rope"
rope_base = 1024.0
norm = "rmsnorm"
norm_gain = False
norm_embedding = True
qk_norm = True
attention_scale = 0.12
activation = "relu2"
tie_head = False
zero_init = True
init = "fan_in"
logit_softcap = 15.0

optimizer = "muon"
learning_rate = 0.025
embedding_lr = 0.7
head_lr = 0.004
scalar_lr = 0.015
momentum = 0.95
momentum_warmup = 300
beta1 = 0.8
beta2 = 0.95
adam_eps = 1e-10
weight_decay = 0.05
cautious_decay = True
grad_clip = 0.0

lr_schedule = "trapezoid"
cooldown = 0.7
warmup_iters = 0
min_lr = 0.0
max_iters = 3250
