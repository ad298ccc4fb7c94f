"""Scorers, a file each: from two vectors to one logit. `d2llm.models.parts` finds them by name; the base says what each
is.
"""
