"""Published metrics with their quirks, to compare with published tables. One module per system.

Nothing here is the default anywhere. Every function says what it does differently from the package's own metric.
"""
