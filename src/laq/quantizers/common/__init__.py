"""What methods and measurement share: the clip search, and matrices in the order of their tiles."""
