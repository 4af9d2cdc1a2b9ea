# Neural Mirror GRPO on the sums of config/arithmetic.py: Dr. GRPO's loss and a leash made by a potential of
# 126 neurons, whose parameters nothing trains.
# As in its source the coefficient is 1e-4, which is next to nothing (mirror.py); --mirror_normalize=True
# --mirror_coefficient=0.05 makes it a leash, and
# docs/mirror.md says what that does beside five others. `python -m tools.learn_mirror config/learn_mirror.py`
# learns a potential for --mirror_checkpoint.
#
# 1 core of an AMD EPYC (fp32), two runs at once: about a minute, after the supervised start of
# config/arithmetic.py (half a minute).
task = 'completion'
dataset = 'arithmetic'
rewards = ['exact_answer']
block_size = 16
max_new_tokens = 4
n_layer = 3
n_head = 4
n_embd = 96
pretrain_iters = 1500
pretrain_until = 0.4
temperature = 1.0

batch_size = 64
group_size = 8
loss_type = 'dr_grpo'
advantage = 'dr_grpo'
kl_beta = 0.0
kl_estimator = 'k3'
divergence = 'neural_mirror'
learning_rate = 1e-3
min_lr = 0.0
max_iters = 300

eval_interval = 100
eval_prompts_n = 1000
eval_show = 0
save_interval = 1000
out_dir = 'out-neural-mirror'
