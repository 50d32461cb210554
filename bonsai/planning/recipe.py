"""The fast recipe, second edition, as settings of train.py for 12 layers, 768 channels and 2^19
tokens per step.

A config file takes them all by `from bonsai.planning.recipe import *` and then sets what differs;
`--depth` scales them to other sizes (bonsai/planning/depth.py). docs/fast-training.md says what
each choice is worth and where it is from. The first edition had no value_embeddings, and 0 for
bigram_embeddings, further_weight and neuron_beta.
"""

# the block
position = "rope"
rope_base = 1024.0  # for contexts of some 1,024 tokens, as in modded-nanogpt
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
value_embeddings = True
bigram_embeddings = 5  # fewer rows take less memory, and have less effect

# Muon for the matrices, AdamW for the rest
optimizer = "muon"
learning_rate = 0.025
embedding_lr = 0.7
table_decay = 0.002  # 1 / (0.7 x 0.002): rows remember 714 steps, a fifth of some 3,250
head_lr = 0.004
scalar_lr = 0.015
momentum = 0.95
momentum_warmup = 300
neuron_beta = 0.95
beta1 = 0.8
beta2 = 0.95
adam_eps = 1e-10
weight_decay = 0.05
cautious_decay = True
grad_clip = 0.0

# at first also a loss on the token after next
further_weight = 0.5

# constant, then linear to 0
batch_order = "epoch"
decay_lr = True
lr_schedule = "trapezoid"
cooldown = 0.7
warmup_iters = 0
min_lr = 0.0
