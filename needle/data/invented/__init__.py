"""Made-up tools and requests about them."""
