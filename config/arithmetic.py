# Sums like 12+34=46, character by character, from nothing: a short supervised start on the answers, then rewards alone.
#
# 2 CPU cores (AMD EPYC, fp32): held-out greedy accuracy after 600 iterations 0.34 -> 0.76 (stopped at 500) and 0.68 -> 0.89, two seeds that each
# had one core for 5 minutes: where the supervised start ends differs from seed to seed. With both cores 400 iterations take 75 s.
# Not yet run on a GPU.
task = 'completion'
dataset = 'arithmetic'
rewards = ['exact_answer']
block_size = 16
max_new_tokens = 4
n_layer = 3
n_head = 4
n_embd = 96
pretrain_iters = 1500
pretrain_until = 0.4     # how long a model takes to find out how to carry differs between seeds threefold
temperature = 1.0

batch_size = 256
group_size = 8
loss_type = 'dapo'
kl_beta = 0.0
learning_rate = 4e-4
min_lr = 0.0
max_iters = 1200

eval_interval = 200
eval_prompts_n = 1000
save_interval = 400
out_dir = 'out-arithmetic-grpo'
