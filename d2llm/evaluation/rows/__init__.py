"""Rows of the tables, a file each: a trained student, and the reference rows that frame the methods, found by the names
of their files.

Each has `load(config, run)`, which gives a `PairScorer` (`evaluation.adapter`). The head of a reference row holds its
`TITLE` and what it `NEEDS` besides the evaluation sets: "teacher", "decoder", "encoder". All go through the same
adapter, tasks and metrics. One that scores for hours has an attribute `resume`, where the stage puts the `Resume` of
its job.
"""
