"""Model, loss and metrics of one objective, wired for the trainer."""
