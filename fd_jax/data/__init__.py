"""From files and prompts to arrays on the host."""
