"""Studies on finished runs; each module is a command of its own."""
