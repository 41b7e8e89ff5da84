"""Tidegauge: a telemetry sidecar for ML model servers."""

from importlib.metadata import version

__version__ = version("tidegauge")
