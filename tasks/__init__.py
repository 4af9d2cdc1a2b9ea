"""The jobs that train_grpo.py can do, by the names that `task` takes."""
from tasks.alignment import Alignment
from tasks.completion import Completion
from tasks.fill_in import FillIn
from tasks.nla import NLA

TASKS = {'fill_in': FillIn, 'completion': Completion, 'alignment': Alignment, 'nla': NLA}
