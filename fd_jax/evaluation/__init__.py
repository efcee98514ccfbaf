"""Whether two models in three stages do better than each alone, measured at small scale."""
