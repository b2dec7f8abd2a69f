"""Model folders made from what training left: adapters merged, weights averaged, and cards that describe them."""
