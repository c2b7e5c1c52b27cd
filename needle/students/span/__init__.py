"""The span student: what reads, what answers, its batch."""
