"""What sensitivities share."""
