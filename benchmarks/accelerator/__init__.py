"""Everything that is worth measuring on an accelerator, as one command with a time limit.

`python -m benchmarks accelerator --prepare DIR` makes a folder that a bare machine without a
package index can run; `DIR/run.sh` runs it there. See docs/accelerators.md.
"""
