"""D2LLM: a bi-encoder student that keeps a cross-encoder's judgement, and a suite to compare it with others.

The package knows nothing of Snakemake: every stage is a function of a validated config (`d2llm.stages` lists them).
"""

__version__ = "0.1.0"
