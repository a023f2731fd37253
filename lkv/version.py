"""The version, for packages and provenance."""

__version__ = "0.1.0"
