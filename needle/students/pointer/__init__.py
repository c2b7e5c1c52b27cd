"""The pointer student: encoder, copying, decoder, its batch."""
