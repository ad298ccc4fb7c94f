"""The version, for records and for `d2llm --version`."""

__version__ = "0.1.0"
