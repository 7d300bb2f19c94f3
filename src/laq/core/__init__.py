"""The values everything speaks in: numpy only, no torch."""
