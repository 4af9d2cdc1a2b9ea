# Source 002, GRPO alignment: reward minus lambda times cost, where lambda follows max(J_C, 0) and so never
# falls, and a folder for each beta and seed. Its model is Alpaca-7B, its prompts custom_train_250.jsonl, its
# scorer Beaver at http://localhost:8000 (scorer_url); here the shop of config/alignment.py.
# The four betas: python -m tools.compare config/sources/betas.py. Not run at full size.
from config.alignment import *

group_size = 30                 # num_generations
max_iters = 500                 # max_steps
kl_beta = 0.01                  # beta: 0.01, 0.05, 0.1 or 0.15
kl_estimator = 'k3'
lambda_cost = 1.0
lambda_positive_only = True
lambda_lr = 0.005
cost_threshold_d = 0.0
jc_ema_beta = 0.9
out_dir = 'out-source-alignment/beta{kl_beta}_seed{seed}_unified'
