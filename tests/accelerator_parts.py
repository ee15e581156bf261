"""Parts for the tests of the accelerator benchmark, which run in separate processes."""

import time


def works(context):
    context.record("answer", 42)


def fails(context):
    context.record("before", 1)
    raise RuntimeError("planted")


def hangs(context):
    context.record("before", 1)
    time.sleep(600)


def needs_a_missing_package(context):
    context.require("no_such_package")
