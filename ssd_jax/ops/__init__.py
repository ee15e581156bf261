"""Pure functions of one image: boxes, priors, matching, losses, suppression."""
