# Source 002, GRPO alignment: 30 completions of a prompt, reward minus lambda times cost, lambda that follows
# max(J_C, 0) and so never falls, one folder for each beta and seed; compare_betas.py has its four betas. Its
# model is Alpaca-7B, its prompts custom_train_250.jsonl, its scorer PKU's Beaver at http://localhost:8000
# (generator_checkpoint, train_prompts, scorer_url); here the shop of config/alignment.py. Not run at full size.
from config.alignment import *

group_size = 30                 # num_generations
max_iters = 500                 # max_steps
kl_beta = 0.01                  # beta: 0.01, 0.05, 0.1 or 0.15
kl_estimator = 'k3'
lambda_cost = 1.0
lambda_adapt = True
lambda_positive_only = True     # J_C_ema = beta J_C_ema + (1 - beta) max(J_C, 0)
cost_threshold_d = 0.0
lambda_lr = 0.005
lambda_min = 1e-4
lambda_max = 5.0
jc_ema_beta = 0.9
out_dir = 'out-source-alignment/beta{kl_beta}_seed{seed}_unified'
