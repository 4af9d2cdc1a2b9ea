import runtime.early  # noqa: F401
