# Source 000, Natural Language Autoencoders in verl: four texts of each activation, GRPO's normalization, an
# activation that replaces the marker's embedding, a critic with an MLP that is taught once a step. Its model
# is GPT-2 (768 wide), which may be named as generator_checkpoint; here the characters of config/nla.py learn.
# Not run at full size.
from config.nla import *

generator_checkpoint = 'out-source-nla/source.pt'
activations = 'out-source-nla/activations'
nla_checkpoint = 'out-source-nla/start.pt'
block_size = 160
injection_mode = 'replace'      # mode
injection_layers = (0,)         # layer_indices
injection_token = '<INJECT>'
injection_prompt = 'The concept <INJECT> means'
max_new_tokens = 100
text_reversed = False

batch_size = 64
group_size = 4                  # num_trajectories_per_prompt
advantage = 'grpo'              # norm_adv_by_std_in_grpo
loss_type = 'grpo'
kl_beta = 0.0                   # use_kl_in_reward: false
critic_learning_rate = 5e-5
critic_train_epochs = 1
critic_warmup_iters = 0
critic_head = 'mlp'
critic_pooling = 'last'
out_dir = 'out-source-nla/grpo'
