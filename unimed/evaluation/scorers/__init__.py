"""One scorer per kind of question: predictions and truths in, rows and their means out."""
