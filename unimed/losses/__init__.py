"""Loss functions. Each returns a scalar, or one value per item where its docstring says so."""
