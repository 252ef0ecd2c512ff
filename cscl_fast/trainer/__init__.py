"""Training: the method, its schedules, and the run around them."""
