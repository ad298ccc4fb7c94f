"""The baselines, one file each: the published recipe over the library's parts. `d2llm.methods.base` finds them by file
name.
"""
