"""What transforms share: places where scales can move, the search for the best, and how they are moved."""
