"""Fast versions of operations, with the signatures of the references; platforms are internal."""
