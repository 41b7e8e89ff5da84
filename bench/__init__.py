"""Figures beside peers, all measured in one run: `python -m bench [--quick]`."""
