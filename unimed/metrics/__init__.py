"""Pure functions on arrays and strings, without torch: metrics, intervals, calibration. Names say the aggregation."""
