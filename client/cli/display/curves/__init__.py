"""Loss curves: their points and axes, drawn in characters or as an SVG."""
