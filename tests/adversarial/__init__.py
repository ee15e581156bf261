"""Hostile input by the thousand: one line and a refusal, or a result; no traceback, no hang."""
