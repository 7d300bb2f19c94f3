"""What the network sees: tokens in three disjoint splits, and the statistics they leave."""
