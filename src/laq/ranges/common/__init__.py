"""What the ways to choose a range share."""
