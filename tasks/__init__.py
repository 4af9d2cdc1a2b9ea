"""The jobs that train_grpo.py can do, by the names that `task` takes."""
from tasks.completion import Completion
from tasks.fill_in import FillIn

TASKS = {'fill_in': FillIn, 'completion': Completion}
