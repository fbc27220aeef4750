"""The one place of the version, free of imports so that a build can read it without torch."""

__version__ = "1.0.0rc1"
