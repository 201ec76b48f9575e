"""What a network costs: floating-point operations, memory, and how the host's threads and memory are used."""
