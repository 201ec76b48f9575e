"""Results of an evaluation: rows, means with intervals, image panels, and their files."""
