"""A contrastive run on GPUs with the optimizer of CLIP (arXiv 2103.00020) and open_clip's warm-up."""

_base_ = "gpu_run.py"

optimizer = dict(betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2)
schedule = dict(type="cosine", warmup_full=True)
batch_size = 256
clip = None
