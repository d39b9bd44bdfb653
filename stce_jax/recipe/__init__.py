"""What a training step does to a batch, and how it updates the weights."""
