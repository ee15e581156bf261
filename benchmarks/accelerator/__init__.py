"""All measurements on an accelerator, as one command with a time limit; see docs/accelerators.md.

`python -m benchmarks accelerator --prepare DIR` makes a folder for a machine without a package
index; `DIR/run.sh` runs the measurements there.
"""
