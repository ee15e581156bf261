"""Command-line interface: one module a command, built by tyro from dataclasses.

Modules of commands import JAX inside their functions, so that --help and errors in the arguments
come at once. `main` imports the module of a command when the command is run.
"""
