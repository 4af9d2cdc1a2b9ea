# Safe alignment in a shop whose rules are known (data/shop/prepare.py): hand over what is asked for, but not
# the four costly things. Made first: a careless shopkeeper to start from, a reward and a cost model, and a
# scorer that serves them; then GRPO on reward minus lambda times cost.
#
# 2 CPU cores (AMD EPYC, fp32), everything included: 3 min 15 s; held out, by the shop's own rules, reward
# 0.508 -> 0.570 and cost -0.032 -> -0.736, by the cost model -0.742, where at most -0.7 was wanted.
from data.shop.prepare import true_cost, true_reward

task = 'alignment'
dataset = 'shop'
block_size = 48
max_new_tokens = 32
n_layer = 3
n_head = 4
n_embd = 96
pretrain_iters = 600
score_iters = 1200
temperature = 1.0

batch_size = 32
group_size = 8
kl_beta = 0.4            # at 0.05 the policy finds what the reward model likes by mistake: docs/alignment.md
learning_rate = 1e-3
min_lr = 1e-4
max_iters = 150

scorer_batch_size = 256
lambda_cost = 0.5
lambda_lr = 0.1
jc_ema_beta = 0.7
cost_threshold_d = 0.7   # at most 15 of 100 completions unsafe: a cost of -0.7

eval_interval = 50
eval_prompts_n = 500
eval_samples = 2
hist_interval = 10
out_dir = 'out-alignment'
