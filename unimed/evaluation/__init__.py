"""Evaluation: rows of one schema, scorers, declared benchmarks, tables, and published protocols.

masks, surfaces, instances, boxes, text, classification, presence: metrics. statistics: intervals. calibration,
conformal, selective: what a probability or an uncertainty is worth. baselines: what a model must beat.
robustness: disturbed inputs. compat: published metrics, quirks included. tables: what is written down.
Every metric name says how it was aggregated.
"""
