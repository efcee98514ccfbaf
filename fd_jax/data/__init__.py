"""Training data and photographs: from files to arrays on the host."""
