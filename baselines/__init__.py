"""The baselines, one file each: the published recipe over the library's parts. `d2llm.methods` finds them by file name."""
