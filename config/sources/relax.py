# Source 001, GRPO for ReLax: its GRPOConfig. It trains a LLaMA on examples/example_prompts.json with any
# function as the reward; here a small model adds. Not run at full size.
task = 'completion'
dataset = 'arithmetic'
block_size = 528

batch_size = 256                # rollout_batch_size: prompts of an iteration
group_size = 4
max_new_tokens = 512
temperature = 0.8
max_iters = 1000                # num_iterations
num_epochs_per_rollout = 2      # ppo_epochs
minibatch_size = 64
kl_beta = 0.1                   # kl_coef
learning_rate = 1e-5
lr_schedule = 'constant'
warmup_iters = 0
grad_clip = 1.0                 # max_grad_norm
out_dir = 'out-source-relax'
