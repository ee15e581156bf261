"""Memory and speed of a config on an accelerator, estimated without the accelerator."""
