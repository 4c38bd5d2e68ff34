"""The device mesh, shardings, and computations that are split over mesh axes."""
