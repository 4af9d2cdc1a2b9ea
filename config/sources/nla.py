# Source 000, Natural Language Autoencoders in verl: four texts of an activation, which replaces the marker's
# embedding, and a critic with an MLP. Its model is GPT-2; here the characters of config/nla.py learn.
# Not run at full size.
from config.nla import *

generator_checkpoint = 'out-source-nla/source.pt'
activations = 'out-source-nla/activations'
nla_checkpoint = 'out-source-nla/start.pt'
block_size = 160
injection_mode = 'replace'      # mode; layer_indices and injection_token are our defaults
injection_prompt = 'The concept <INJECT> means'
max_new_tokens = 100
text_reversed = False

batch_size = 64
group_size = 4                  # num_trajectories_per_prompt
advantage = 'grpo'              # norm_adv_by_std_in_grpo
loss_type = 'grpo'
kl_beta = 0.0                   # use_kl_in_reward: false
critic_learning_rate = 5e-5
critic_warmup_iters = 0
critic_head = 'mlp'
out_dir = 'out-source-nla/grpo'
