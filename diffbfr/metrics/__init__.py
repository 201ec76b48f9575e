"""Metrics of restored images: one module per metric, each with a `MetricInfo` that says how it is measured.

Importing the package imports none of them.
"""
