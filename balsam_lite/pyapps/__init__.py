"""Python code that runs in a job: calls of a BalsamExecutor, `run` functions and hooks of application classes."""
