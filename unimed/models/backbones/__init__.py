"""Adapters that let every vision-language model of transformers be read and prompted the same way."""
