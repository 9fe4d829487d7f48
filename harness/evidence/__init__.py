"""What a trained model does inside: attention distance, frequencies, CKA, the size of its update."""
