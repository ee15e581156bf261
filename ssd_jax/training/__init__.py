"""State, step, checkpoints and the loop."""
