"""A trained network as a file that other runtimes load."""
