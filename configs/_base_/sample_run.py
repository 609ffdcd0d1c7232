"""A run on the sample set: minutes on one CPU core."""

optimizer = dict(type="AdamW", lr=1e-3)
schedule = dict(type="cosine", warmup=30)
max_steps = 300
clip = 1.0
checkpoint = dict(interval=150, keep=2)
log = dict(interval=25)
seed = 0
