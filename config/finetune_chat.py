# Finetunes GPT-2 on conversations, so that it answers: in the terminal, and to OpenAI's clients.
# Cost: 400 steps of 32,768 tokens, of which only the assistant's have a loss; half a minute on an
# H200 by calculation, from GPT-2's speed there. Expected loss: not measured. For a model of your
# own, add --init_from=out-mine and prepare the data with its tokenizer.
# $ python data/chat/prepare.py --input=chats.jsonl
# $ python train.py config/finetune_chat.py
# $ python sample.py --out_dir=out-chat --chat
out_dir = "out-chat"
dataset = "chat"
init_from = "gpt2"
always_save_checkpoint = False  # keep the best, not the last

batch_size = 8
gradient_accumulation_steps = 4
batch_order = "epoch"
max_iters = 400
eval_interval = 50
eval_iters = 40

learning_rate = 5e-5
min_lr = 0.0
warmup_iters = 20
dropout = 0.1
