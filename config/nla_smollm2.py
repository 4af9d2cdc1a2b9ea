# What SmolLM2-135M-Instruct (config/smollm2.py) thinks two thirds up, in words: its residuals after block 20
# of 30 on Python's help texts. The start is label-free: the actor learns to write the latest 16 tokens, the
# critic to read them.
#
# Meant for one GPU and not yet run on one; on a CPU only tried: 64 activations, three iterations, 2 minutes.
from config.smollm2 import generator_checkpoint

task = 'nla'
dataset = 'pydoc_topics'
activations = 'out-nla-smollm2/activations'
nla_checkpoint = 'out-nla-smollm2/start.pt'
activation_layer = 20
activation_context = 64
activations_n = 50000
injection_token = '<empty_output>'   # a special token that no text contains
max_new_tokens = 17
text_reversed = True
warm_start_learning_rate = 5e-5
warm_start_iters = 1000
critic_start_iters = 500

batch_size = 64
group_size = 8
micro_batch_size = 16
temperature = 1.0
loss_type = 'dr_grpo'
advantage = 'dr_grpo'
kl_beta = 0.01
kl_estimator = 'k3'
learning_rate = 1e-5
lr_schedule = 'constant'
beta2 = 0.95
critic_learning_rate = 5e-5
critic_warmup_iters = 50
max_iters = 500

eval_interval = 250
eval_prompts_n = 1000
log_interval = 10
save_interval = 250
out_dir = 'out-nla-smollm2/grpo'
