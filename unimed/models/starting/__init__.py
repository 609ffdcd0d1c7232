"""Builders of new models: small ones from texts, large ones from published parts."""
