"""Memory and speed of a config on an accelerator that is not here."""
