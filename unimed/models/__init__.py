"""Models know one device and no trainer. They are Hugging Face classes wherever they hold weights of their own.

Importing this registers them, so that `AutoModel.from_pretrained(folder)` opens folders of ours.
"""

from unimed.models.families import register

register()
