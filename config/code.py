# Python functions of one line with a real model (config/smollm2.py), on tests that are run in the sandbox.
#
# 2 CPU cores (AMD EPYC with AVX-512 bf16), 157 held-out functions, seeds 1 and 2, answers that pass all
# tests: the three shown ones greedy 0.554 -> 0.669 and 0.707, sampled 0.108 -> 0.592 and 0.650; the five
# hidden ones 0.554 -> 0.650 and 0.682, 0.115 -> 0.586 and 0.631; 16 min 25 s, data included, and 12 min 51 s.
from config.smollm2 import generator_checkpoint

task = 'completion'
dataset = 'pyfunc'       # a prompt shows the reward's three tests; five others are run at evaluation only
chat_template = True
system_prompt = 'You write Python.'
max_prompt_length = 128  # most have about 90; what is longer is dropped
too_long = 'drop'
rewards = [('code_correctness', 0.6), ('code_execution', 0.2), ('code_quality', 0.2)]
max_new_tokens = 32      # the function has 17 to 32 with its fence, and what follows it is not read
temperature = 1.0

batch_size = 32
group_size = 4
micro_batch_size = 8     # 24 GiB of memory do not hold 32
loss_type = 'dapo'
kl_beta = 0.0
learning_rate = 3e-5
min_lr = 0.0
lr_schedule = 'linear'
warmup_iters = 2
max_iters = 20

eval_interval = 20
eval_prompts_n = 200
eval_samples = 1
log_interval = 1
save_interval = 100      # a checkpoint is 1.6 GB
out_dir = 'out-code'
