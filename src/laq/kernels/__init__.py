"""Operations on packed matrices. `reference` defines them in numpy; every other backend must equal it."""
