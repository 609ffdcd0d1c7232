"""How questions and answers are worded: pools, templates and the targets of published systems."""
