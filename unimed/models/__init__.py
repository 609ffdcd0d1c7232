"""Models know one device and no trainer. They are Hugging Face classes wherever they hold weights of their own."""
