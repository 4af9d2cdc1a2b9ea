# Source 003, single-step fill-in with a frozen judge. Its data set is char_diffusion; here it is Python's own
# library, and generator and judge are trained first where these files are missing. Not run at full size.
generator_checkpoint = 'out-char-diffusion/checkpoint.pt'
judge_checkpoint = 'out-char-diffusion/judge.pt'
gold_checkpoint = 'out-char-diffusion/judge_gold.pt'

group_size = 8
temperature = 0.8
top_p = 0.95
advantage = 'dr_grpo'           # reward less the group's baseline
kl_beta = 0.1
learning_rate = 1e-5
min_lr = 0.0
wandb_run_name = 'my_grpo_run'
out_dir = 'out-grpo'
