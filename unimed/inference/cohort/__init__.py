"""Cohorts: a model over thousands of sources, on several processes or a cluster, each output exactly once.

A cohort folder holds

- `cohort.json`: the job, from which the same command goes on, and `records.jsonl`: what it is asked about, in order;
- `rows/part-000000.parquet` (or `.jsonl`) and so on: a row per record, also of those that failed, with the reason;
- `parts/000000/` and so on: the files of the records of that part, and its `cases.jsonl`, as every run has them;
- `missing.jsonl`, where a job had to stop: the records without a row, and why.

Records are cut into parts by their order alone, so that no output depends on the number or speed of workers.
"""
