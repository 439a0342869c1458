"""What reaches out: a process for each, which holds no camera and no model."""
