"""A run on GPUs: bf16, clipped gradients, workers that read ahead."""

optimizer = dict(type="AdamW")
precision = "bf16"
clip = 1.0
num_workers = 4
checkpoint = dict(interval=500, keep=2)
log = dict(interval=50)
seed = 0
