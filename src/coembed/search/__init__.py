"""What is done to queries and hits between the encoder and the index: pure functions."""
