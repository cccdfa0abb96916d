"""Where the line runs beyond one machine: images, compose, Kubernetes, and what they start."""
