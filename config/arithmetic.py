# Sums like 12+34=46, character by character: a short supervised start on the answers, then rewards alone.
#
# 2 CPU cores (AMD EPYC, fp32), the start included: held-out greedy accuracy 0.435 -> 0.994 (seed 1) in
# 3 min 33 s and 0.535 -> 0.993 (seed 2) in 3 min 12 s.
task = 'completion'
dataset = 'arithmetic'
rewards = ['exact_answer']
block_size = 16
max_new_tokens = 4
n_layer = 3
n_head = 4
n_embd = 96
pretrain_iters = 1500
pretrain_until = 0.4     # how soon a model finds out how to carry differs between seeds threefold
temperature = 1.0

batch_size = 256
group_size = 8
loss_type = 'dapo'
kl_beta = 0.0
learning_rate = 7e-4
min_lr = 0.0
max_iters = 1200

eval_interval = 400
eval_prompts_n = 1000
save_interval = 600
out_dir = 'out-arithmetic-grpo'
