"""Checker of the types and shapes of the operations; installed by conftest.py."""

from beartype import BeartypeConf, beartype

# Whole numbers are accepted as floats, as type checkers do.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
