"""What a model's own config says of its layers and experts."""
