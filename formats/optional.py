"""Packages that only some users have."""
import importlib


def optional(module, told):
    """The module of such a package. told: the ImportError where it is missing, with its pip install."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ImportError(told) from None
