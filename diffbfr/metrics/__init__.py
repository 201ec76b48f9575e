"""How good a restoration is: one file a metric, each with a card that says how it is measured.

Importing the package costs nothing; take the metrics from their modules.
"""
