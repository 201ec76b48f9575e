"""DiffBFR: blind face restoration with three diffusion models in a cascade (arXiv:2305.04517).

Importing the package costs nothing: torch is loaded by the modules that need it.
"""

__version__ = "0.1.0"
